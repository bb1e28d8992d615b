"""Rotary embedding and KV store of prefill rows in Triton: queries rotated in place, keys and values into their slots.

A program owns one token, all its heads; the rotated key goes straight to the cache. Decode rows need none of this: the
decode kernel does it itself. Used by dispatch.py, and store_heads by decode_attention.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import shapes
from backend.kernels.paged_kv import format_options, levels_of, quantise, store_levels
from backend.kernels.rotary import load_angles, load_rotated


def rotary_and_store(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                     slot_mapping: Tensor) -> None:
    """See reference.rotary_and_store. q [T, H, D], k and v [T, K, D] with any strides but the last; k is left as is."""
    shapes.check_rotary_and_store(q, k, v, positions, cos_sin, cache, slot_mapping)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    if num_tokens == 0:
        return
    _rotary_and_store_kernel[(num_tokens,)](
        q, k, v, positions, cos_sin, cache.k, cache.v, cache.scales, slot_mapping,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF=cos_sin.shape[2],
        BLOCK_SIZE=cache.block_size, HEADS_TILE=triton.next_power_of_2(num_heads),
        KV_HEADS_TILE=triton.next_power_of_2(num_kv_heads), DIM_TILE=triton.next_power_of_2(head_dim),
        **format_options(cache))


# The prefill rows of a mixed step begin at any token; one compilation serves all of them.
@triton.jit(do_not_specialize_on_alignment=["positions", "slot_mapping"])
def _rotary_and_store_kernel(q, k, v, positions, cos_sin, k_cache, v_cache, scales, slot_mapping,
                             q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride,
                             v_head_stride, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
                             HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr,
                             HEADS_TILE: tl.constexpr, KV_HEADS_TILE: tl.constexpr, DIM_TILE: tl.constexpr,
                             BITS: tl.constexpr, ONLINE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    column = tl.arange(0, DIM_TILE)
    cos, sin = load_angles(cos_sin, position, column, HALF)

    head = tl.arange(0, HEADS_TILE)[:, None]
    inside = (head < NUM_HEADS) & (column < HEAD_DIM)[None, :]
    queries = q + token * q_token_stride + head * q_head_stride
    rotated = load_rotated(queries, column, inside, cos, sin, HALF)
    tl.debug_barrier()  # a thread reads values that others overwrite
    tl.store(queries + column[None, :], rotated, mask=inside)

    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    head = tl.arange(0, KV_HEADS_TILE)
    valid = head < NUM_KV_HEADS
    head = tl.where(valid, head, 0)
    rows = (slot // BLOCK_SIZE * NUM_KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    store_heads(k + token * k_token_stride + head[:, None] * k_head_stride,
                v + token * v_token_stride + head[:, None] * v_head_stride, cos_sin, position, cos, sin, k_cache,
                v_cache, scales, rows, head, column, valid, valid, HEAD_DIM, HALF, BITS, ONLINE)


@triton.jit
def store_heads(k, v, cos_sin, position, cos, sin, k_cache, v_cache, scales, rows, kv_head, column, valid, stored,
                HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BITS: tl.constexpr, ONLINE: tl.constexpr):
    """Rotates a new token's key, writes key and value into the cache, and returns both [heads, columns] as they will be
    read from there, 0 where not valid.

    k, v           pointers [heads, 1] to the heads kv_head [heads]
    cos, sin       load_angles of its position and `column`
    rows           [heads] of the cache;  valid, stored  [heads]: which to load, and which of them to write"""
    inside = valid[:, None] & (column < HEAD_DIM)[None, :]
    key = load_rotated(k, column, inside, cos, sin, HALF)
    value = tl.load(v + column[None, :], mask=inside, other=0.0, cache_modifier=".cg")
    if BITS == 0:
        target = rows[:, None] * HEAD_DIM + column[None, :]
        tl.store(k_cache + target, key, mask=inside & stored[:, None])
        tl.store(v_cache + target, value, mask=inside & stored[:, None])
        return key, value
    else:
        k_levels, k_scale, k_zero = quantise(key, scales, 0, kv_head, inside, BITS, ONLINE)
        v_levels, v_scale, v_zero = quantise(value, scales, 1, kv_head, inside, BITS, ONLINE)
        k_partners, v_partners = k_levels, v_levels
        if BITS == 4:  # the other half of each byte
            partner = column + HEAD_DIM // 2
            inside = valid[:, None] & (partner < HEAD_DIM)[None, :]
            cos, sin = load_angles(cos_sin, position, partner, HALF)
            k_partners = levels_of(load_rotated(k, partner, inside, cos, sin, HALF).to(tl.float32), k_scale, k_zero,
                                   BITS)
            v_partners = levels_of(tl.load(v + partner[None, :], mask=inside, other=0.0,
                                           cache_modifier=".cg").to(tl.float32), v_scale, v_zero, BITS)
        stored = stored & valid
        store_levels(k_cache, scales, 0, rows, column, stored, k_levels, k_partners, k_scale, k_zero, HEAD_DIM, BITS,
                     ONLINE)
        store_levels(v_cache, scales, 1, rows, column, stored, v_levels, v_partners, v_scale, v_zero, HEAD_DIM, BITS,
                     ONLINE)
        k_levels = k_levels * k_scale[:, None] + k_zero[:, None]
        v_levels = v_levels * v_scale[:, None] + v_zero[:, None]
        inside = valid[:, None] & (column < HEAD_DIM)[None, :]
        return (tl.where(inside, k_levels, 0.0).to(key.dtype), tl.where(inside, v_levels, 0.0).to(value.dtype))
