"""Calibrated scales of the KV cache: read from a workspace's weights/past_kv_scale.safetensors, and checked.

Per layer and KV head a scale and a zero for keys (after the rotary embedding) and for values: x = q * scale + zero with
q in [-128, 127]. Used by worker.py, before anything is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import CheckpointError
from backend.model_source import ModelSource
from backend.safetensors_file import read_safetensors
from backend.workspace import PAST_KV_SCALE

FORMAT = "millrace.past_kv_scale"
CURE = "calibrate this model again with python -m converter.kv_qparams, or delete the file to use int4"


def read_past_kv_scale(source: ModelSource, engine: EngineConfig, tp: TensorParallel) -> Tensor | None:
    """This rank's [num_layers, K, 2, 2] float32: a KV head's (key, value), and of each (scale, zero), here for q + 128,
    which is what the cache holds. None where quant_policy is not 4, or the workspace has no scales.

    Raises CheckpointError for a file that is damaged, incomplete, or of another model."""
    file = source.path / PAST_KV_SCALE
    if engine.quant_policy != 4 or not file.is_file():
        return None
    tensors = read_safetensors(file, CURE)
    _check_model(file, source)
    shape = 2, source.model.num_kv_heads, 2
    layers = []
    for index in range(source.model.num_layers):
        name = f"layers.{index}.past_kv_scale"
        if name not in tensors:
            raise CheckpointError(f"{file} has no {name}; {CURE}")
        if tensors[name].shape != shape or tensors[name].dtype != torch.float32:
            raise CheckpointError(f"{tensors[name].where} is {list(tensors[name].shape)} {tensors[name].dtype}, but "
                                  f"{source.model.model_name} needs {list(shape)} torch.float32; {CURE}")
        layers.append(tensors[name][:])
    scale, zero = torch.stack(layers).transpose(1, 2).unbind(-1)  # each [num_layers, num_kv_heads, 2]
    if not (scale.isfinite() & (scale >= 0) & zero.isfinite()).all():
        raise CheckpointError(f"{file} holds a scale that is not finite or is negative; {CURE}")
    scale = scale.where(scale > 0, 1.0)  # a head whose values are all alike: they are its zero
    local_heads = tp.split(source.model.num_kv_heads, "num_kv_heads")
    return torch.stack((scale, zero - 128 * scale), -1)[:, tp.rank * local_heads:][:, :local_heads].contiguous()


def identity(source: ModelSource) -> dict[str, str]:
    """What a file says of the model that it is for. weights: a digest of those that make the first layer's keys and
    values, which fine-tuning changes where shapes and embeddings stay."""
    digest = hashlib.sha256()
    for name, tensor in source.tensors():
        if name.startswith("layers.0.attention.w_qkv."):
            digest.update(tensor[:].contiguous().view(torch.uint8).numpy())
    names = "model_name", "num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size"
    return {"format": FORMAT, **{name: str(getattr(source.model, name)) for name in names},
            "weights": digest.hexdigest()[:16]}


def _check_model(file: Path, source: ModelSource) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    expected = identity(source)
    wrong = [name for name, value in expected.items() if metadata.get(name) != value]
    if wrong:
        theirs = ", ".join(f"{name}={metadata.get(name, 'nothing')}" for name in wrong)
        ours = ", ".join(f"{name}={expected[name]}" for name in wrong)
        raise CheckpointError(f"{file} is of another model ({theirs}) than this one ({ours}); {CURE}")
