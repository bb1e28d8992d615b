"""Prefill attention in Triton: causal attention of a batch of different lengths, keys and values read from the cache.

The kernel here runs on any GPU and for any dtype: online softmax after FlashAttention-2 (Dao, 2023). A tile's rows are
(token, head) pairs of the query heads that share a KV head, so that a key is read once for the whole group and any
group size fills the tile. On Hopper, prefill_hopper.py takes what it supports. Used by dispatch.py."""

from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import shapes
from backend.kernels.paged_kv import LOG2_E, cache_rows, format_options, load_tile

try:
    from backend.kernels import prefill_hopper
except ImportError as error:  # Gluon is experimental: another Triton may have it elsewhere
    logging.getLogger(__name__).warning("prefill on Hopper is slow with this Triton (%s); use 3.6 or 3.7", error)
    prefill_hopper = None

# New tokens times context from which prefill_hopper's kernel is used. Up to 512 tokens the one here is as fast on an
# H200, and its launch costs the host 40 microseconds less, for which a step of few tokens would wait.
HOPPER_MIN_SCORES = 1 << 18


def paged_prefill(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor, query_start: Tensor,
                  scale: float, max_query_len: int, max_context_len: int, sum_context_len: int) -> Tensor:
    """See reference.paged_prefill. q [T, H, D] with any strides but the last; returns [T, H, D], contiguous.

    max_query_len bounds every row's queries, since it sizes the grid; sum_context_len every context, since it sizes
    what a quantised one is unpacked into; max_context_len only chooses the kernel."""
    shapes.check_attention(q, cache, block_tables, context_lens)
    if max_query_len == 0 or not len(context_lens):
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    is_large = len(q) * max_context_len >= HOPPER_MIN_SCORES
    if (is_large and prefill_hopper is not None
            and prefill_hopper.supports(q, cache, len(context_lens), sum_context_len)):
        return prefill_hopper.hopper_prefill(q, cache, block_tables, context_lens, query_start, scale, max_context_len,
                                             sum_context_len)
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.num_kv_heads
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group = num_heads // num_kv_heads
    dim_tile = triton.next_power_of_2(head_dim)
    rows_tile, keys_tile, num_warps, num_stages = _tiles(dim_tile, q.dtype)
    rows_tile = max(rows_tile, triton.next_power_of_2(group))
    queries_tile = rows_tile // group
    _prefill_kernel[(triton.cdiv(max_query_len, queries_tile), num_kv_heads, len(context_lens))](
        q, cache.k, cache.v, cache.scales, block_tables, context_lens, query_start, output, q.stride(0), q.stride(1),
        block_tables.stride(0), scale * LOG2_E, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        BLOCK_SIZE=cache.block_size, ROWS_TILE=rows_tile, QUERIES_TILE=queries_tile, KEYS_TILE=keys_tile,
        DIM_TILE=dim_tile, **format_options(cache), num_warps=num_warps, num_stages=num_stages)
    return output


def _tiles(dim_tile: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(rows, keys, warps, stages) that keep queries, keys and values within 99 KiB of shared memory (sm_86, sm_89)."""
    if dtype == torch.float32:  # no tensor cores without tf32: small tiles, whose sums fit the registers
        return (32, 32, 4, 1) if dim_tile <= 64 else (16, 16, 4, 1)
    if dim_tile <= 64:
        return 128, 64, 4, 3
    return (128, 64, 8, 2) if dim_tile <= 128 else (64, 32, 8, 2)


# Steps differ in these by chance (M divisible by 16, rows cut at an odd address); one compilation serves all of them.
@triton.jit(do_not_specialize=["table_stride"],
            do_not_specialize_on_alignment=["block_tables", "context_lens", "query_start"])
def _prefill_kernel(q, k_cache, v_cache, scales, block_tables, context_lens, query_start, output,
                    q_token_stride, q_head_stride, table_stride, scale_log2,
                    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                    BLOCK_SIZE: tl.constexpr, ROWS_TILE: tl.constexpr, QUERIES_TILE: tl.constexpr,
                    KEYS_TILE: tl.constexpr, DIM_TILE: tl.constexpr, BITS: tl.constexpr, ONLINE: tl.constexpr):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    first_query = tl.load(query_start + sequence)
    num_queries = tl.load(query_start + sequence + 1) - first_query
    tile_start = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES_TILE  # the longest first
    if tile_start >= num_queries:
        return
    context_len = tl.load(context_lens + sequence)

    tile_row = tl.arange(0, ROWS_TILE)
    query = tile_start + tile_row // GROUP
    head = kv_head * GROUP + tile_row % GROUP
    position = context_len - num_queries + query
    column = tl.arange(0, DIM_TILE)
    # QUERIES_TILE * GROUP can be less than ROWS_TILE; the rows left over belong to the next tile.
    inside = ((query < num_queries) & (tile_row < QUERIES_TILE * GROUP))[:, None] & (column < HEAD_DIM)[None, :]
    token = (first_query + query).to(tl.int64)
    queries = tl.load(q + token[:, None] * q_token_stride + head[:, None] * q_head_stride + column[None, :],
                      mask=inside, other=0.0)

    best = tl.full([ROWS_TILE], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS_TILE], tl.float32)
    attended = tl.zeros([ROWS_TILE, DIM_TILE], tl.float32)
    # Every row sees key 0, in the first tile, so that best is finite from there on.
    first_position = context_len - num_queries + tile_start
    num_keys = tl.minimum(context_len, first_position + QUERIES_TILE)
    num_full = (tl.minimum(context_len, first_position + 1)) // KEYS_TILE * KEYS_TILE  # keys that every row sees
    for start in range(0, num_full, KEYS_TILE):
        attended, weight, best = _add_keys(
            attended, weight, best, queries, k_cache, v_cache, scales, block_tables + sequence * table_stride, start,
            num_keys, position, kv_head, scale_log2, False, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, KEYS_TILE, DIM_TILE,
            BITS, ONLINE)
    for start in range(num_full, num_keys, KEYS_TILE):
        attended, weight, best = _add_keys(
            attended, weight, best, queries, k_cache, v_cache, scales, block_tables + sequence * table_stride, start,
            num_keys, position, kv_head, scale_log2, True, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, KEYS_TILE, DIM_TILE,
            BITS, ONLINE)

    target = output + (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + column[None, :]
    tl.store(target, (attended / weight[:, None]).to(output.dtype.element_ty), mask=inside)


@triton.jit
def _add_keys(attended, weight, best, queries, k_cache, v_cache, scales, block_table, start, num_keys, position,
              kv_head, scale_log2, HIDE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
              BLOCK_SIZE: tl.constexpr, KEYS_TILE: tl.constexpr, DIM_TILE: tl.constexpr, BITS: tl.constexpr,
              ONLINE: tl.constexpr):
    """One tile of keys. HIDE: some lie after num_keys, or after a row's position; masks everywhere are not free."""
    column = tl.arange(0, DIM_TILE)
    key_position = start + tl.arange(0, KEYS_TILE)
    valid = key_position < num_keys if HIDE else tl.full([KEYS_TILE], True, tl.int1)
    rows = cache_rows(block_table, key_position, valid, kv_head, NUM_KV_HEADS, BLOCK_SIZE)
    key = load_tile(k_cache, scales, 0, rows, kv_head, column, valid, queries.dtype, HEAD_DIM, BITS, ONLINE)
    scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale_log2
    if HIDE:
        visible = (key_position[None, :] <= position[:, None]) & valid[None, :]
        scores = tl.where(visible, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    probability = tl.exp2(scores - new_best[:, None])
    decay = tl.exp2(best - new_best)
    value = load_tile(v_cache, scales, 1, rows, kv_head, column, valid, queries.dtype, HEAD_DIM, BITS, ONLINE)
    attended = tl.dot(probability.to(value.dtype), value, attended * decay[:, None], input_precision="ieee")
    return attended, weight * decay + tl.sum(probability, axis=1), new_best
