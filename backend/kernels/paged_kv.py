"""Paged KV: where a token's key and value lie in the cache, how a tile of either is read, and a new one quantised.

BITS and ONLINE say the KV format at compile time (kv_format.py): BITS is 0 where values are kept in the model's dtype,
and ONLINE whether each row has its own scale and zero. Rows are those of the cache seen as [N * K * S, bytes].
Used by the attention kernels, kv_store.py and kv_unpack.py."""

from __future__ import annotations

import triton
import triton.language as tl

from backend.forward_batch import LayerKv

LOG2_E = 1.4426950408889634  # the attention kernels use exp2, which is one instruction; the scale carries this factor
_MAX_SCALE = tl.constexpr(65504.0)  # float16's greatest


def format_options(cache: LayerKv) -> dict[str, int | bool]:
    """The KV format, as kernels take it."""
    return {"BITS": cache.format.num_bits, "ONLINE": cache.format.is_online}


@triton.jit
def cache_rows(block_table, tokens, valid, kv_head, NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The row of kv_head at each token, in either cache.

    block_table points at the sequence's row; only entries of valid tokens are read. int64: a cache passes 2^31."""
    blocks = tl.load(block_table + tokens // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    return (blocks * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + tokens % BLOCK_SIZE


@triton.jit
def tile_rows(block_table, start, end, kv_head, TILE: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
              BLOCK_SIZE: tl.constexpr):
    """cache_rows of the tokens [start, start + TILE) before `end`; start is a multiple of TILE.

    Where a tile lies within one block, as it usually does, one entry of the table serves all of it."""
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(block_table + start // BLOCK_SIZE, mask=start < end, other=0).to(tl.int64)
        return (block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + start % BLOCK_SIZE + tl.arange(0, TILE)
    else:
        tokens = start + tl.arange(0, TILE)
        return cache_rows(block_table, tokens, tokens < end, kv_head, NUM_KV_HEADS, BLOCK_SIZE)


@triton.jit
def load_tile(cache, scales, WHICH: tl.constexpr, rows, kv_head, column, valid, dtype: tl.constexpr,
              HEAD_DIM: tl.constexpr, BITS: tl.constexpr, ONLINE: tl.constexpr):
    """The keys (WHICH = 0) or values (1) [rows, columns] in dtype; 0 for rows that are not valid and columns beyond D.

    From L2 (.cg): no line is read twice, and what a kernel in front has stored must not be hidden by an old line."""
    inside = valid[:, None] & (column < HEAD_DIM)[None, :]
    if BITS == 0:
        return tl.load(cache + rows[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0,
                       cache_modifier=".cg")
    else:
        scale, zero = load_scales(scales, WHICH, rows, kv_head, valid, ONLINE)
        if BITS == 8:
            levels = tl.load(cache + rows[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0,
                             cache_modifier=".cg").to(tl.int32)
        else:
            HALF_DIM: tl.constexpr = HEAD_DIM // 2
            pairs = tl.load(cache + rows[:, None] * HALF_DIM + (column % HALF_DIM)[None, :], mask=inside, other=0,
                            cache_modifier=".cg").to(tl.int32)
            levels = (pairs >> (column // HALF_DIM * 4)[None, :]) & 15
        return tl.where(inside, levels.to(tl.float32) * scale[:, None] + zero[:, None], 0.0).to(dtype)


@triton.jit
def load_scales(scales, WHICH: tl.constexpr, rows, kv_head, valid, ONLINE: tl.constexpr):
    """Scale and zero of keys (WHICH = 0) or values (1), float32 for each row; 0 for rows that are not valid."""
    if ONLINE:
        places = scales + rows * 4 + 2 * WHICH
        scale = tl.load(places, mask=valid, other=0.0, cache_modifier=".cg").to(tl.float32)
        return scale, tl.load(places + 1, mask=valid, other=0.0, cache_modifier=".cg").to(tl.float32)
    else:
        places = scales + kv_head * 4 + 2 * WHICH
        return tl.where(valid, tl.load(places), 0.0), tl.where(valid, tl.load(places + 1), 0.0)


@triton.jit
def range_of(heads, inside, BITS: tl.constexpr):
    """Scale and zero with which heads [heads, columns], float32, fill all levels; rounded to float16, as they are kept.
    Values that are all alike are the zero; one that is NaN makes the scale NaN."""
    low = tl.min(tl.where(inside, heads, float("inf")), axis=1)
    high = tl.max(tl.where(inside, heads, float("-inf")), axis=1)
    scale = tl.minimum((high - low) / ((1 << BITS) - 1), _MAX_SCALE).to(tl.float16).to(tl.float32)
    zero = tl.minimum(tl.maximum(low, -_MAX_SCALE), _MAX_SCALE).to(tl.float16).to(tl.float32)
    has_nan = tl.max(tl.where(inside & (heads != heads), 1, 0), axis=1) == 1  # which a minimum passes over
    return tl.where(has_nan, float("nan"), tl.where(scale == 0, 1.0, scale)), zero


@triton.jit
def levels_of(heads, scale, zero, BITS: tl.constexpr):
    """What is kept of heads [heads, columns], float32, as whole float32 numbers."""
    levels = tl.floor((heads - zero[:, None]) / scale[:, None] + 0.5)
    return tl.minimum(tl.maximum(levels, 0.0), (1 << BITS) - 1.0)


@triton.jit
def quantise(heads, scales, WHICH: tl.constexpr, kv_head, inside, BITS: tl.constexpr, ONLINE: tl.constexpr):
    """Levels, scale and zero of new heads [heads, columns] of the KV heads kv_head [heads]."""
    heads = heads.to(tl.float32)
    if ONLINE:
        scale, zero = range_of(heads, inside, BITS)
    else:
        scale, zero = load_scales(scales, WHICH, kv_head, kv_head, kv_head >= 0, False)
    return levels_of(heads, scale, zero, BITS), scale, zero


@triton.jit
def store_levels(cache, scales, WHICH: tl.constexpr, rows, column, stored, levels, partners, scale, zero,
                 HEAD_DIM: tl.constexpr, BITS: tl.constexpr, ONLINE: tl.constexpr):
    """Writes the rows [heads] of quantised heads where `stored` [heads].

    partners  the levels of the columns column + D/2, where BITS is 4; else not used"""
    if BITS == 8:
        inside = stored[:, None] & (column < HEAD_DIM)[None, :]
        tl.store(cache + rows[:, None] * HEAD_DIM + column[None, :], levels.to(tl.int32).to(tl.uint8), mask=inside)
    else:
        inside = stored[:, None] & (column < HEAD_DIM // 2)[None, :]
        pairs = (levels + 16 * partners).to(tl.int32).to(tl.uint8)
        tl.store(cache + rows[:, None] * (HEAD_DIM // 2) + column[None, :], pairs, mask=inside)
    if ONLINE:
        places = scales + rows * 4 + 2 * WHICH
        tl.store(places, scale.to(tl.float16), mask=stored)
        tl.store(places + 1, zero.to(tl.float16), mask=stored)
