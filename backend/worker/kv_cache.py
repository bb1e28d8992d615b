"""KV cache: its allocation. How many blocks there are is memory_plan's matter, which block holds what the engine's.

Used by worker.py."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig
from backend.forward_batch import LayerKv
from backend.kv_format import kv_format


def allocate_kv_cache(model: ModelConfig, engine: EngineConfig, num_blocks: int, dtype: torch.dtype,
                      device: torch.device, kv_scale: Tensor | None) -> list[LayerKv]:
    """One LayerKv of num_blocks + 1 blocks per layer, zeros.

    kv_scale  [num_layers, K, 2, 2] float32, this rank's part of past_kv_scale.py's
    The last block is a dummy: slots of padding rows lie there, so that slot arithmetic needs no exception. Zeros rather
    than whatever was there, because a masked score times a NaN would still be NaN."""
    kv = kv_format(engine.quant_policy, kv_scale is not None)
    heads = num_blocks + 1, model.num_kv_heads // engine.tp, engine.block_size
    row = (model.head_dim * kv.num_bits // 8,) if kv.num_bits else (model.head_dim,)
    stored = torch.uint8 if kv.num_bits else dtype

    def layer(index: int) -> LayerKv:
        scales = None
        if kv.is_online:
            scales = _zeros((*heads, 2, 2), torch.float16, device)
        elif kv.num_bits:
            scales = kv_scale[index].to(device)
        return LayerKv(kv, _zeros(heads + row, stored, device), _zeros(heads + row, stored, device), scales)

    return [layer(index) for index in range(model.num_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU, pages that take no memory until they are written: torch.zeros would write them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)  # calloc
    return torch.from_numpy(pages).view(dtype).view(shape)
