"""Rotary embedding in Triton: rotates queries and keys in place, where they lie in the fused qkv tensor.

A program owns one token, all its heads. Used by dispatch.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    """See reference.rotary. q [T, H, D] and k [T, K, D] with any strides but the last; cos_sin [P, 2, R/2]."""
    shapes.check_rotary(q, k, positions, cos_sin)
    num_tokens, num_heads, _ = q.shape
    if num_tokens == 0:
        return
    half = cos_sin.shape[2]
    _rotary_kernel[(num_tokens,)](
        q, k, positions, cos_sin, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        NUM_HEADS=num_heads, NUM_KV_HEADS=k.shape[1], HALF=half, HALF_TILE=triton.next_power_of_2(half),
        HEADS_TILE=triton.next_power_of_2(num_heads), KV_HEADS_TILE=triton.next_power_of_2(k.shape[1]))


@triton.jit
def _rotary_kernel(q, k, positions, cos_sin, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
                   NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, HALF_TILE: tl.constexpr,
                   HEADS_TILE: tl.constexpr, KV_HEADS_TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF_TILE)
    angles = cos_sin + tl.load(positions + token) * 2 * HALF + column
    cos = tl.load(angles, mask=column < HALF, other=0.0)
    sin = tl.load(angles + HALF, mask=column < HALF, other=0.0)
    _rotate(q + token * q_token_stride, cos, sin, q_head_stride, NUM_HEADS, HEADS_TILE, HALF, HALF_TILE)
    _rotate(k + token * k_token_stride, cos, sin, k_head_stride, NUM_KV_HEADS, KV_HEADS_TILE, HALF, HALF_TILE)


@triton.jit
def _rotate(heads, cos, sin, head_stride, NUM_HEADS: tl.constexpr, HEADS_TILE: tl.constexpr, HALF: tl.constexpr,
            HALF_TILE: tl.constexpr):
    head = tl.arange(0, HEADS_TILE)
    column = tl.arange(0, HALF_TILE)
    inside = (head < NUM_HEADS)[:, None] & (column < HALF)[None, :]
    address = heads + head[:, None] * head_stride + column[None, :]
    first = tl.load(address, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(address + HALF, mask=inside, other=0.0).to(tl.float32)
    element = heads.dtype.element_ty
    tl.store(address, (first * cos[None, :] - second * sin[None, :]).to(element), mask=inside)
    tl.store(address + HALF, (second * cos[None, :] + first * sin[None, :]).to(element), mask=inside)
