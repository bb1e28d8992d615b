"""KV store in Triton: writes each new token's key and value into its slot of the paged cache.

A program owns one token, all its KV heads. Used by dispatch.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See reference.store_kv. k, v [T, K, D] with any strides but the last; caches [N, S, K, D]; slot -1 is skipped."""
    shapes.check_store(k, v, k_cache, v_cache, slot_mapping)
    num_tokens, num_kv_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    _store_kv_kernel[(num_tokens,)](
        k, v, k_cache, v_cache, slot_mapping, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HEADS_TILE=triton.next_power_of_2(num_kv_heads),
        DIM_TILE=triton.next_power_of_2(head_dim))


@triton.jit
def _store_kv_kernel(k, v, k_cache, v_cache, slot_mapping, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
                     NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS_TILE: tl.constexpr,
                     DIM_TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    head = tl.arange(0, HEADS_TILE)[:, None]
    column = tl.arange(0, DIM_TILE)[None, :]
    inside = (head < NUM_KV_HEADS) & (column < HEAD_DIM)
    target = (slot * NUM_KV_HEADS + head) * HEAD_DIM + column
    key = tl.load(k + token * k_token_stride + head * k_head_stride + column, mask=inside)
    value = tl.load(v + token * v_token_stride + head * v_head_stride + column, mask=inside)
    tl.store(k_cache + target, key, mask=inside)
    tl.store(v_cache + target, value, mask=inside)
