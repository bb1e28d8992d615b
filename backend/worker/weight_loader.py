"""Weight loader: a model source's tensors into a declared model, each exactly once, each rank only its part.

Used by worker.py."""

from __future__ import annotations

import torch
from torch import nn

from backend.errors import CheckpointError
from backend.layers.parameter import ShardedModule
from backend.model_source import ModelSource


def load_weights(model: nn.Module, source: ModelSource, dtype: torch.dtype, device: torch.device) -> None:
    """Gives every parameter its storage on the device in the compute dtype; buffers follow.

    Raises CheckpointError, naming the tensor, for one that is missing, unknown, double or of another shape."""
    wanted = {f"{path}.{name}": (module, name) for path, module in model.named_modules()
              if isinstance(module, ShardedModule) for name in module.shards}
    loaded: set[str] = set()
    for full_name, stored in source.tensors():
        if full_name in loaded:
            raise CheckpointError(f"{source.path}: tensor {full_name} is there twice; convert again")
        if full_name not in wanted:
            raise CheckpointError(f"{source.path}: tensor {full_name} has no place in {source.model.model_name}; "
                                  "its config.ini belongs to another model, convert again")
        module, name = wanted[full_name]
        shard = module.shards[name]
        if tuple(stored.shape) != shard.shape:
            raise CheckpointError(f"{source.path}: tensor {full_name} has shape {list(stored.shape)}, "
                                  f"its configuration needs {list(shard.shape)}; convert again")
        module.set_parameter(name, shard.read(stored, dtype, device))
        loaded.add(full_name)
    missing = sorted(set(wanted) - loaded)
    if missing:
        raise CheckpointError(f"{source.path}: {len(missing)} of {len(wanted)} tensors are missing, "
                              f"the first is {missing[0]}; convert again")
    for module in model.modules():
        if isinstance(module, ShardedModule):
            module.prepare()
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=False)
