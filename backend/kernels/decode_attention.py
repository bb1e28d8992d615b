"""Decode attention in Triton: everything between the qkv projection and the output projection of one-token rows.

One launch rotates q and k, stores the new key and value, and attends to the paged context. The cached tokens of all
rows are cut into about equal splits, so that few or ragged rows still fill the device; a row's last split ends with the
new token, whose key and value it has in registers, so no program reads what this launch writes to the cache. The
program that finishes last of a row's splits merges them (Flash-Decoding, Dao et al., 2023). Splits are cut on the
device from the lengths there: one CUDA graph serves every length. The query heads that share a KV head form one tile,
so that keys are read once. On Hopper decode_cluster.py and decode_quantised.py take what they are made for. Used by
dispatch.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import decode_cluster, decode_quantised, pdl, shapes
from backend.kernels.capability import num_multiprocessors
from backend.kernels.decode_quantised import finished_splits
from backend.kernels.kv_store import store_heads
from backend.kernels.paged_kv import LOG2_E, format_options, load_tile, tile_rows
from backend.kernels.rotary import load_angles, load_rotated

MAX_HEADS_TILE = 64
TILE_BYTES = 8192  # of keys, and as many of values
NUM_STAGES = 3  # so two tiles are under way while one is computed with
MIN_SPLIT_TOKENS = 64  # shorter splits cost more to merge than they save
MAX_SPLITS = 32  # of a row, which one program merges
MERGED_VALUES = 8192  # that it has in registers at a time
RESIDENT_PROGRAMS = 4  # on a multiprocessor, by registers
RAGGED_SHARES = 16  # a row of more than this share of all tokens is split even where the rows alone fill the device
MIN_ROWS_TILE = 32  # context lengths that every program looks at; more are as many as the next power of two


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut. Values that were best, or near it, for 1 to 256 rows of 512 to 32,768 tokens on an H200.

    heads_tile  query heads of a program, which share a KV head
    keys_tile   tokens that are loaded at a time
    num_shares  the cached tokens of all rows are cut into about as many splits, for each head tile
    min_split   tokens below which a split is not cut; a multiple of keys_tile"""

    heads_tile: int
    keys_tile: int
    num_shares: int
    min_split: int
    num_warps: int


def paged_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float, *,
                 after_dense: bool = False) -> Tensor:
    """See reference.paged_decode. q, k, v with any strides but the last; returns [B, H, D], contiguous.

    Launches on one device must be ordered, as those of one stream are: they share the counters of finished splits."""
    shapes.check_decode(q, k, v, positions, cos_sin, cache, slot_mapping, block_tables, context_lens)
    if len(q) == 0:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if decode_quantised.fits(q, cache):
        return decode_quantised.paged_decode(q, k, v, positions, cos_sin, cache, slot_mapping, block_tables,
                                             context_lens, scale)
    # Between dense layers of one token g8's step took 3.99 ms with decode_cluster and 3.73 without, though alone it is
    # 5 us faster a layer (bf16, one H200, 2026-11-21): it lives from beginning early, and those layers (matvec_cuda.py)
    # take all registers of a multiprocessor until they end, and divide its memory otherwise. Where they do neither, it
    # is as fast as Triton's kernel is where they do both, no faster: 3.56 ms and 3.56 for a chain of 32 layers.
    if not (after_dense and len(q) == 1) and decode_cluster.fits(q, k, v, cos_sin, cache):
        return decode_cluster.paged_decode(q, k, v, positions, cos_sin, cache, slot_mapping, block_tables, context_lens,
                                       scale)
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = cache.num_kv_heads
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group = num_heads // num_kv_heads
    dim_tile = triton.next_power_of_2(head_dim)
    tiling = _tiling(num_rows, num_kv_heads, group, dim_tile, q.dtype.itemsize, num_multiprocessors(q.device))
    head_tiles = num_kv_heads * triton.cdiv(group, tiling.heads_tile)
    num_items = tiling.num_shares + num_rows - 1  # a row's last split may be short
    partial = torch.empty((num_items, num_heads, head_dim), dtype=torch.float32, device=q.device)
    log_weights = torch.empty((num_items, num_heads), dtype=torch.float32, device=q.device)
    merge_heads = triton.next_power_of_2(min(tiling.heads_tile, group))
    # Neighbours in the grid run together. With several rows those are heads, whose keys of a token are neighbours in
    # memory too. With one row they are splits, so that some heads merge while others read: 0.7 to 1.9 us less a layer.
    heads_axis = 1 if num_rows == 1 else 0
    _decode_kernel[(num_items, head_tiles) if heads_axis else (head_tiles, num_items)](
        q, k, v, positions, cos_sin, cache.k, cache.v, cache.scales, slot_mapping, block_tables, context_lens, output,
        partial, log_weights, finished_splits(q.device, num_rows * head_tiles),
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), block_tables.stride(0),
        num_rows, tiling.num_shares, tiling.min_split, scale * LOG2_E,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF=cos_sin.shape[2],
        BLOCK_SIZE=cache.block_size, ROWS_TILE=max(MIN_ROWS_TILE, triton.next_power_of_2(num_rows)),
        HEADS_TILE=tiling.heads_tile, DIM_TILE=dim_tile, KEYS_TILE=tiling.keys_tile, MAX_SPLITS=MAX_SPLITS,
        MERGE_HEADS=merge_heads, MERGE_SPLITS=max(1, MERGED_VALUES // (dim_tile * merge_heads)), HEADS_AXIS=heads_axis,
        num_warps=tiling.num_warps, num_stages=NUM_STAGES, **format_options(cache), **pdl.launch_options(q.device))
    return output


def _tiling(num_rows: int, num_kv_heads: int, group: int, dim_tile: int, itemsize: int,
            num_multiprocessors: int) -> Tiling:
    heads_tile = min(MAX_HEADS_TILE, max(16, triton.next_power_of_2(group)))  # tl.dot needs 16 rows
    keys_tile = min(MIN_SPLIT_TOKENS, max(16, TILE_BYTES // (dim_tile * itemsize)))
    # All splits should be resident at once. On average a row's last split is half empty.
    resident = max(1, RESIDENT_PROGRAMS * num_multiprocessors // (num_kv_heads * triton.cdiv(group, heads_tile)))
    num_shares = max(resident - num_rows // 2, min(resident, RAGGED_SHARES))
    # Two warps exchange less than four do; more values than these do not fit their registers.
    num_warps = 2 if heads_tile * dim_tile * itemsize <= 16 * 128 * 2 else 4
    return Tiling(heads_tile, keys_tile, num_shares, MIN_SPLIT_TOKENS, num_warps)


# Steps differ in these by chance (M divisible by 16, rows cut at an odd address); one compilation serves all of them.
@triton.jit(do_not_specialize=["table_stride", "num_rows", "num_shares", "min_split"],
            do_not_specialize_on_alignment=["positions", "slot_mapping", "block_tables", "context_lens"])
def _decode_kernel(q, k, v, positions, cos_sin, k_cache, v_cache, scales, slot_mapping, block_tables, context_lens,
                   output, partial, log_weights, counters,
                   q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride,
                   table_stride, num_rows, num_shares, min_split, scale_log2,
                   NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
                   BLOCK_SIZE: tl.constexpr, ROWS_TILE: tl.constexpr, HEADS_TILE: tl.constexpr,
                   DIM_TILE: tl.constexpr, KEYS_TILE: tl.constexpr, MAX_SPLITS: tl.constexpr,
                   MERGE_HEADS: tl.constexpr, MERGE_SPLITS: tl.constexpr, HEADS_AXIS: tl.constexpr,
                   BITS: tl.constexpr, ONLINE: tl.constexpr, USE_PDL: tl.constexpr):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    item = tl.program_id(1 - HEADS_AXIS)
    head_tile = tl.program_id(HEADS_AXIS)
    row, context_len, num_splits, first_item = _row_of(item, context_lens, num_rows, num_shares, min_split, ROWS_TILE,
                                                       KEYS_TILE, MAX_SPLITS)
    if context_len == 0:  # fewer splits than there could be
        pdl.wait_for_inputs(USE_PDL)
        return

    cached_len = context_len - 1
    split = item - first_item
    split_tokens = tl.cdiv(tl.cdiv(cached_len, num_splits), KEYS_TILE) * KEYS_TILE
    first_token = split * split_tokens
    last_token = tl.minimum(first_token + split_tokens, cached_len)
    kv_head = head_tile % NUM_KV_HEADS
    first_member = head_tile // NUM_KV_HEADS * HEADS_TILE
    column = tl.arange(0, DIM_TILE)
    row = row.to(tl.int64)
    block_table = block_tables + row * table_stride
    position = tl.load(positions + row)
    cos, sin = load_angles(cos_sin, position, column, HALF)
    slot = tl.load(slot_mapping + row)
    rows = tile_rows(block_table, first_token, last_token, kv_head, KEYS_TILE, NUM_KV_HEADS, BLOCK_SIZE)
    pdl.wait_for_inputs(USE_PDL)

    member = first_member + tl.arange(0, HEADS_TILE)  # which head of the group
    head = kv_head * GROUP + member
    inside = (member < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    query = load_rotated(q + row * q_row_stride + head[:, None] * q_head_stride, column, inside, cos, sin, HALF)

    is_last = split == num_splits - 1  # and so has the new token too
    new_head = kv_head + tl.arange(0, 1)  # a tile of one
    new_row = (slot // BLOCK_SIZE * NUM_KV_HEADS + new_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    has_new = (new_head >= 0) & is_last
    new_key, new_value = store_heads(
        k + row * k_row_stride + new_head[:, None] * k_head_stride,
        v + row * v_row_stride + new_head[:, None] * v_head_stride, cos_sin, position, cos, sin, k_cache, v_cache,
        scales, new_row, new_head, column, has_new, has_new & (first_member == 0),  # stored by one of the group's tiles
        HEAD_DIM, HALF, BITS, ONLINE)
    best = tl.full([HEADS_TILE], float("-inf"), tl.float32)
    weights = tl.zeros([HEADS_TILE, KEYS_TILE], tl.float32)  # added up at the end, not in every round
    attended = tl.zeros([HEADS_TILE, DIM_TILE], tl.float32)
    for start in range(first_token, last_token, KEYS_TILE):
        valid = start + tl.arange(0, KEYS_TILE) < last_token
        key = load_tile(k_cache, scales, 0, rows, kv_head, column, valid, query.dtype, HEAD_DIM, BITS, ONLINE)
        value = load_tile(v_cache, scales, 1, rows, kv_head, column, valid, query.dtype, HEAD_DIM, BITS, ONLINE)
        # Those of the next tile, so that they are there in time.
        rows = tile_rows(block_table, start + KEYS_TILE, last_token, kv_head, KEYS_TILE, NUM_KV_HEADS, BLOCK_SIZE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1) * scale_log2)
        probability = tl.exp2(scores * scale_log2 - new_best[:, None])
        decay = tl.exp2(best - new_best)
        weights = weights * decay[:, None] + probability
        attended = tl.dot(probability.to(value.dtype), value, attended * decay[:, None], input_precision="ieee")
        best = new_best
    weight = tl.sum(weights, axis=1)

    if is_last:  # the new token, after the cached ones
        score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), axis=1) * scale_log2
        new_best = tl.maximum(best, score)
        probability = tl.exp2(score - new_best)
        decay = tl.exp2(best - new_best)
        attended = attended * decay[:, None] + probability[:, None] * new_value.to(tl.float32)
        weight = weight * decay + probability
        best = new_best
    attended /= weight[:, None]
    if num_splits == 1:
        tl.store(output + (row * NUM_HEADS + head)[:, None] * HEAD_DIM + column[None, :],
                 attended.to(output.dtype.element_ty), mask=inside)
    else:
        place = item.to(tl.int64) * NUM_HEADS + head
        tl.store(log_weights + place, best + tl.log2(weight), mask=member < GROUP)
        tl.store(partial + place[:, None] * HEAD_DIM + column[None, :], attended, mask=inside)
        tl.debug_barrier()  # all of them, before one thread counts this split
        counter = counters + row * tl.num_programs(HEADS_AXIS) + head_tile
        num_finished = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if num_finished == num_splits - 1:
            tl.store(counter, 0)
            _merge(output, partial, log_weights, row, first_item, num_splits, kv_head * GROUP, first_member,
                   NUM_HEADS, GROUP, HEAD_DIM, DIM_TILE, MERGE_HEADS, MERGE_SPLITS)


@triton.jit
def _row_of(item, context_lens, num_rows, num_shares, min_split, ROWS_TILE: tl.constexpr, KEYS_TILE: tl.constexpr,
            MAX_SPLITS: tl.constexpr):
    """Row, its context length, how many splits it has and which item is its first; the length is 0 beyond the items.

    A split holds 1/num_shares of all rows' cached tokens, rounded up to whole tiles, or more. So there are at most
    num_shares + num_rows - 1 of them, and a row of few tokens has one."""
    index = tl.arange(0, ROWS_TILE)
    context_len = tl.load(context_lens + index, mask=index < num_rows, other=0)
    cached_len = tl.maximum(context_len - 1, 0)
    least = tl.maximum(tl.cdiv(tl.sum(cached_len, axis=0), num_shares), tl.cdiv(cached_len, MAX_SPLITS))
    split_tokens = tl.maximum(tl.cdiv(least, KEYS_TILE) * KEYS_TILE, min_split)
    num_splits = tl.maximum(tl.cdiv(cached_len, split_tokens), 1)
    num_splits = tl.where(context_len > 0, num_splits, 0)
    end = tl.cumsum(num_splits, axis=0)
    is_row = (end - num_splits <= item) & (item < end)
    return (tl.sum(tl.where(is_row, index, 0), axis=0), tl.sum(tl.where(is_row, context_len, 0), axis=0),
            tl.sum(tl.where(is_row, num_splits, 0), axis=0), tl.sum(tl.where(is_row, end - num_splits, 0), axis=0))


@triton.jit
def _merge(output, partial, log_weights, row, first_item, num_splits, first_head, first_member,
           NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
           MERGE_HEADS: tl.constexpr, MERGE_SPLITS: tl.constexpr):
    """Adds up the splits of a row's heads, each with its weight. From L2: other multiprocessors have written them."""
    member = first_member + tl.arange(0, MERGE_HEADS)
    head = first_head + member
    column = tl.arange(0, DIM_TILE)
    inside = (member < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    best = tl.full([MERGE_HEADS], float("-inf"), tl.float32)
    for start in range(0, num_splits, MERGE_SPLITS):
        split = start + tl.arange(0, MERGE_SPLITS)
        place = (first_item + split)[:, None] * NUM_HEADS + head[None, :]
        log_weight = tl.load(log_weights + place, mask=(split < num_splits)[:, None] & (member < GROUP)[None, :],
                             other=float("-inf"), cache_modifier=".cg")
        best = tl.maximum(best, tl.max(log_weight, axis=0))
    weight = tl.zeros([MERGE_HEADS], tl.float32)
    merged = tl.zeros([MERGE_HEADS, DIM_TILE], tl.float32)
    for start in range(0, num_splits, MERGE_SPLITS):
        split = start + tl.arange(0, MERGE_SPLITS)
        used = split < num_splits
        place = (first_item + split)[:, None] * NUM_HEADS + head[None, :]
        log_weight = tl.load(log_weights + place, mask=used[:, None] & (member < GROUP)[None, :], other=float("-inf"),
                             cache_modifier=".cg")
        values = tl.load(partial + place.to(tl.int64)[:, :, None] * HEAD_DIM + column[None, None, :],
                         mask=used[:, None, None] & inside[None, :, :], other=0.0, cache_modifier=".cg")
        factor = tl.exp2(log_weight - best[None, :])
        merged += tl.sum(values * factor[:, :, None], axis=0)
        weight += tl.sum(factor, axis=0)
    tl.store(output + (row * NUM_HEADS + head)[:, None] * HEAD_DIM + column[None, :],
             (merged / weight[:, None]).to(output.dtype.element_ty), mask=inside)
