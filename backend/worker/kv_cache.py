"""KV cache: its allocation. How many blocks there are is memory_plan's matter, which block holds what the engine's.

Used by worker.py."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig


def allocate_kv_cache(model: ModelConfig, engine: EngineConfig, num_blocks: int, dtype: torch.dtype,
                      device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Per layer (k, v), each [num_blocks + 1, S, K, D], zeros.

    The last block is a dummy: padding rows write there, so that slot arithmetic needs no exception. Zeros rather than
    whatever was there, because a masked score times a NaN would still be NaN."""
    shape = (num_blocks + 1, engine.block_size, model.num_kv_heads // engine.tp, model.head_dim)
    return [(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(model.num_layers)]
