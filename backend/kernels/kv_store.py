"""Rotary embedding and KV store of prefill rows in Triton: queries rotated in place, keys and values into their slots.

A program owns one token, all its heads; the rotated key goes straight to the cache. Decode rows need none of this: the
decode kernel does it itself. Used by dispatch.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes
from backend.kernels.rotary import load_angles, load_rotated


def rotary_and_store(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor,
                     v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See reference.rotary_and_store. q [T, H, D], k and v [T, K, D] with any strides but the last; k is left as is."""
    shapes.check_rotary_and_store(q, k, v, positions, cos_sin, k_cache, v_cache, slot_mapping)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    if num_tokens == 0:
        return
    _rotary_and_store_kernel[(num_tokens,)](
        q, k, v, positions, cos_sin, k_cache, v_cache, slot_mapping,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF=cos_sin.shape[2],
        HEADS_TILE=triton.next_power_of_2(num_heads), KV_HEADS_TILE=triton.next_power_of_2(num_kv_heads),
        DIM_TILE=triton.next_power_of_2(head_dim))


# The prefill rows of a mixed step begin at any token; one compilation serves all of them.
@triton.jit(do_not_specialize_on_alignment=["positions", "slot_mapping"])
def _rotary_and_store_kernel(q, k, v, positions, cos_sin, k_cache, v_cache, slot_mapping,
                             q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride,
                             v_head_stride, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
                             HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HEADS_TILE: tl.constexpr,
                             KV_HEADS_TILE: tl.constexpr, DIM_TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_TILE)
    cos, sin = load_angles(cos_sin, tl.load(positions + token), column, HALF)

    head = tl.arange(0, HEADS_TILE)[:, None]
    inside = (head < NUM_HEADS) & (column < HEAD_DIM)[None, :]
    queries = q + token * q_token_stride + head * q_head_stride
    rotated = load_rotated(queries, column, inside, cos, sin, HALF)
    tl.debug_barrier()  # a thread reads values that others overwrite
    tl.store(queries + column[None, :], rotated, mask=inside)

    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    head = tl.arange(0, KV_HEADS_TILE)[:, None]
    inside = (head < NUM_KV_HEADS) & (column < HEAD_DIM)[None, :]
    target = (slot * NUM_KV_HEADS + head) * HEAD_DIM + column[None, :]
    key = load_rotated(k + token * k_token_stride + head * k_head_stride, column, inside, cos, sin, HALF)
    value = tl.load(v + token * v_token_stride + head * v_head_stride + column[None, :], mask=inside)
    tl.store(k_cache + target, key, mask=inside)
    tl.store(v_cache + target, value, mask=inside)
