"""Unpacking of a quantised KV history in Triton: some rows' contexts in the model's dtype, in blocks of their own.

For prefill_hopper.py, whose copies bring keys and values to the tensor cores as they lie in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels.paged_kv import cache_rows, format_options, load_tile
from backend.kv_format import KvFormat
from backend.memory_plan import KV_SCRATCH_BYTES, blocks_of

TILE_VALUES = 8192  # of keys, and as many values, that a program unpacks at a time
MIN_ROWS_TILE = 32  # more rows are as many as the next power of two


def heads_at_a_time(cache: LayerKv, dtype: torch.dtype, num_rows: int, sum_context_len: int) -> int:
    """For how many KV heads of the rows' contexts the scratch has room."""
    num_blocks = _most_blocks(cache, num_rows, sum_context_len)
    head_bytes = num_blocks * cache.block_size * KvFormat.AS_MODEL.head_bytes(cache.head_dim, dtype.itemsize)
    return min(cache.num_kv_heads, KV_SCRATCH_BYTES // head_bytes)


def unpack(cache: LayerKv, block_tables: Tensor, context_lens: Tensor, first_head: int, num_heads: int,
           dtype: torch.dtype, max_context_len: int, sum_context_len: int) -> tuple[LayerKv, Tensor]:
    """The contexts of all rows for at most num_heads KV heads from first_head on, and the block tables [B, M] of these.

    block_tables [B, M] int32, context_lens [B] int32; the latter's maximum and sum are at most as given."""
    num_rows, head_dim, block_size = len(context_lens), cache.head_dim, cache.block_size
    num_heads = min(num_heads, cache.num_kv_heads - first_head)
    shape = _most_blocks(cache, num_rows, sum_context_len), num_heads, block_size, head_dim
    unpacked = LayerKv(KvFormat.AS_MODEL, *(torch.empty(shape, dtype=dtype, device=cache.k.device) for _ in range(2)),
                       None)
    tables = torch.empty_like(block_tables, memory_format=torch.contiguous_format)
    dim_tile = triton.next_power_of_2(head_dim)
    _unpack_kernel[(blocks_of(max_context_len, block_size), num_heads, num_rows)](
        cache.k, cache.v, cache.scales, block_tables, context_lens, unpacked.k, unpacked.v, tables,
        block_tables.stride(0), tables.stride(0), first_head, num_rows, NUM_KV_HEADS=cache.num_kv_heads,
        HEAD_DIM=head_dim, DIM_TILE=dim_tile, BLOCK_SIZE=block_size, TOKENS_TILE=TILE_VALUES // dim_tile,
        ROWS_TILE=max(MIN_ROWS_TILE, triton.next_power_of_2(num_rows)), **format_options(cache))
    return unpacked, tables


def _most_blocks(cache: LayerKv, num_rows: int, sum_context_len: int) -> int:
    """That so many tokens of so many rows fill."""
    return sum_context_len // cache.block_size + num_rows


# Steps differ in these by chance; one compilation serves all of them.
@triton.jit(do_not_specialize=["table_stride", "new_table_stride", "first_head", "num_rows"],
            do_not_specialize_on_alignment=["block_tables", "context_lens"])
def _unpack_kernel(k_cache, v_cache, scales, block_tables, context_lens, keys, values, new_tables, table_stride,
                   new_table_stride, first_head, num_rows, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                   DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, TOKENS_TILE: tl.constexpr,
                   ROWS_TILE: tl.constexpr, BITS: tl.constexpr, ONLINE: tl.constexpr):
    place = tl.program_id(0)  # of a block in its row's table
    head = tl.program_id(1)
    row = tl.program_id(2)
    context_len = tl.load(context_lens + row)
    if place * BLOCK_SIZE >= context_len:
        return
    before = tl.arange(0, ROWS_TILE)
    lens = tl.load(context_lens + before, mask=before < row, other=0)
    block = tl.sum(tl.cdiv(lens, BLOCK_SIZE), axis=0) + place
    if head == 0:
        tl.store(new_tables + row * new_table_stride + place, block)
    block_table = block_tables + row.to(tl.int64) * table_stride
    column = tl.arange(0, DIM_TILE)
    for start in range(0, BLOCK_SIZE, TOKENS_TILE):
        offset = start + tl.arange(0, TOKENS_TILE)
        inside = offset < BLOCK_SIZE
        tokens = place * BLOCK_SIZE + offset
        valid = inside & (tokens < context_len)
        rows = cache_rows(block_table, tokens, valid, first_head + head, NUM_KV_HEADS, BLOCK_SIZE)
        target = ((block.to(tl.int64) * tl.num_programs(1) + head) * BLOCK_SIZE + offset) * HEAD_DIM
        target = target[:, None] + column[None, :]
        stored = inside[:, None] & (column < HEAD_DIM)[None, :]
        for which in tl.static_range(2):
            tile = load_tile(v_cache if which else k_cache, scales, which, rows, first_head + head, column, valid,
                             keys.dtype.element_ty, HEAD_DIM, BITS, ONLINE)
            tl.store((values if which else keys) + target, tile, mask=stored)
