"""Weight loader: a model source's tensors into a declared model, each exactly once, each rank only its part.

Used by worker.py and converter/layerwise.py; how the bytes travel is weight_reader.py's matter."""

from __future__ import annotations

import threading

import torch
from torch import nn
from tqdm import tqdm

from backend.errors import CheckpointError
from backend.layers.parameter import Shard, ShardedModule
from backend.model_source import ModelSource, ReadableTensor, StoredTensor
from backend.worker.weight_reader import WeightPart, read_parts

SILENT_S = 2.0  # a load that is over by then shows no bar


def load_weights(model: nn.Module, source: ModelSource, dtype: torch.dtype, device: torch.device,
                 show_progress: bool = False) -> int:
    """Gives every parameter its storage on the device, in the compute dtype where it has none of its own; buffers
    follow. Returns the bytes read.

    show_progress  a bar, on a terminal, where it takes long
    Raises CheckpointError, naming the tensor, for one that is missing, unknown, double or of another shape, before
    anything is read; and for one that cannot be read."""
    num_bytes = _read(model, source, dtype, device, show_progress)
    for module in model.modules():
        if isinstance(module, ShardedModule):
            module.prepare()
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=False)
    return num_bytes


def _read(model: nn.Module, source: ModelSource, dtype: torch.dtype, device: torch.device, show_progress: bool) -> int:
    """Fills the parameters. Once it returns nobody else holds them, so that a layer that packs its own frees them."""
    parts = []
    for stored, module, name, shard in match_tensors(model, source).values():
        local = torch.empty(shard.local_shape, dtype=module.own_dtypes.get(name, dtype), device=device)
        if shard.padding:
            local.narrow(shard.axis, local.shape[shard.axis] - shard.padding, shard.padding).zero_()
        module.set_parameter(name, local)
        parts += [WeightPart(stored, index, target) for index, target in shard.places(local)]
    num_bytes = sum(part.num_bytes for part in parts)
    with _Bar(total=num_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc="weights", delay=SILENT_S,
              disable=None if show_progress else True) as bar:  # None: only on a terminal
        read_parts(parts, device, bar.update)
    return num_bytes


class _Bar(tqdm):
    """Its lock is this process's own: tqdm's is the system's semaphore, of which Python warns when a process that has
    one is killed."""

    _lock = threading.RLock()


def match_tensors(model: nn.Module, source: ModelSource) -> dict[str, tuple[StoredTensor, ShardedModule, str, Shard]]:
    """By its name each stored tensor, with the parameter that it is: module, name there, and this rank's part.

    Raises CheckpointError as load_weights does, before anything is read."""
    wanted = {f"{path}.{name}": (module, name) for path, module in model.named_modules()
              if isinstance(module, ShardedModule) for name in module.shards}
    matched: dict[str, tuple[StoredTensor, ShardedModule, str, Shard]] = {}
    for full_name, stored in source.tensors():
        if full_name in matched:
            raise CheckpointError(f"{source.path}: tensor {full_name} is there twice; convert again")
        if full_name not in wanted:
            raise CheckpointError(f"{source.path}: tensor {full_name} has no place in {source.model.model_name}; "
                                  "its config.ini belongs to another model, convert again")
        module, name = wanted[full_name]
        shard = module.shards[name]
        if tuple(stored.shape) != shard.shape:
            raise CheckpointError(f"{source.path}: tensor {full_name} has shape {list(stored.shape)}, "
                                  f"its configuration needs {list(shard.shape)}; convert again")
        own_dtype = module.own_dtypes.get(name)
        if own_dtype is not None and isinstance(stored, ReadableTensor) and stored.dtype != own_dtype:
            raise CheckpointError(f"{source.path}: tensor {full_name} is stored as {stored.dtype}, "
                                  f"its configuration needs {own_dtype}; convert again")
        matched[full_name] = stored, module, name, shard
    missing = sorted(set(wanted) - set(matched))
    if missing:
        raise CheckpointError(f"{source.path}: {len(missing)} of {len(wanted)} tensors are missing, "
                              f"the first is {missing[0]}; convert again")
    return matched
