"""Quantised keys and values in plain torch: what of a value is kept, and what is read back.

Used by reference.py; the formula of every KV format's kernels too (KIVI and LMDeploy quantise likewise)."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kv_format import KvFormat

MAX_SCALE = 65504.0  # float16's greatest


def quantise(heads: Tensor, cache: LayerKv, which: int) -> tuple[Tensor, Tensor]:
    """Heads [T, K, D] of keys (which = 0) or values (1): the bytes [T, K, D or D/2] to be kept, and their scales and
    zeros [T, K, 2] float16, or [K, 2] float32 where they are calibrated."""
    heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
    scales = _range(heads, cache.format.num_bits) if cache.format.is_online else cache.scales[:, which]
    scale, zero = scales.to(heads.dtype).unsqueeze(-1).unbind(-2)
    levels = ((heads - zero) / scale + 0.5).floor_().clamp_(0, 2**cache.format.num_bits - 1)
    levels = levels.to(torch.uint8)
    if cache.format is KvFormat.INT4:
        lower, upper = levels.chunk(2, dim=-1)
        levels = lower | upper << 4
    return levels, scales


def dequantise(stored: Tensor, scales: Tensor, kv: KvFormat, dtype: torch.dtype) -> Tensor:
    """Values [..., D] in dtype of bytes [..., D or D/2] with their scales and zeros [..., 2]."""
    if kv is KvFormat.INT4:
        stored = torch.cat((stored & 15, stored >> 4), dim=-1)
    scale, zero = scales.to(torch.promote_types(dtype, torch.float32)).unsqueeze(-2).unbind(-1)
    return torch.addcmul(zero, stored, scale).to(dtype)


def _range(heads: Tensor, num_bits: int) -> Tensor:
    """Scale and zero [..., 2] float16 with which heads [..., D] fill all levels. NaN where there is one in the head."""
    low, high = heads.aminmax(dim=-1)
    scale = ((high - low) / (2**num_bits - 1)).clamp(max=MAX_SCALE).half()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # values that are all alike are the zero
    return torch.stack((scale, low.clamp(-MAX_SCALE, MAX_SCALE).half()), dim=-1)
