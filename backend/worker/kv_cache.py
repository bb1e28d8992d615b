"""KV cache: its allocation. How many blocks there are is memory_plan's matter, which block holds what the engine's.

Used by worker.py."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig


def allocate_kv_cache(model: ModelConfig, engine: EngineConfig, num_blocks: int, dtype: torch.dtype,
                      device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Per layer (k, v), each [num_blocks + 1, S, K, D], zeros.

    The last block is a dummy: slots of padding rows lie there, so that slot arithmetic needs no exception. Zeros rather
    than whatever was there, because a masked score times a NaN would still be NaN."""
    shape = (num_blocks + 1, engine.block_size, model.num_kv_heads // engine.tp, model.head_dim)
    return [(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(model.num_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU, pages that take no memory until they are written: torch.zeros would write them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)  # calloc
    return torch.from_numpy(pages).view(dtype).view(shape)
