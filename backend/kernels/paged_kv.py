"""Paged KV: where a token's key and value lie in the cache, and how a tile of either is read.

Used by decode_attention.py and prefill_attention.py."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # the attention kernels use exp2, which is one instruction; the scale carries this factor


@triton.jit
def cache_offsets(block_table, tokens, valid, kv_head, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                  BLOCK_SIZE: tl.constexpr):
    """Offset of the first value of kv_head at each token, in elements from the start of either cache [N, S, K, D].

    block_table points at the sequence's row; only entries of valid tokens are read. int64: a cache passes 2^31."""
    blocks = tl.load(block_table + tokens // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    return ((blocks * BLOCK_SIZE + tokens % BLOCK_SIZE) * NUM_KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def tile_offsets(block_table, start, end, kv_head, TILE: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
                 HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """cache_offsets of the tokens [start, start + TILE) before `end`; start is a multiple of TILE.

    Where a tile lies within one block, as it usually does, one entry of the table serves all of it."""
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(block_table + start // BLOCK_SIZE, mask=start < end, other=0).to(tl.int64)
        first = (block * BLOCK_SIZE + start % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
        return first * HEAD_DIM + tl.arange(0, TILE) * (NUM_KV_HEADS * HEAD_DIM)
    else:
        tokens = start + tl.arange(0, TILE)
        return cache_offsets(block_table, tokens, tokens < end, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)


@triton.jit
def load_tile(cache, offsets, column, valid, HEAD_DIM: tl.constexpr):
    """The keys or values [tokens, columns] at cache_offsets; 0 for tokens that are not valid and columns beyond D.

    From L2 (.cg): no line is read twice, and what a kernel in front has stored must not be hidden by an old line."""
    inside = valid[:, None] & (column < HEAD_DIM)[None, :]
    return tl.load(cache + offsets[:, None] + column[None, :], mask=inside, other=0.0, cache_modifier=".cg")
