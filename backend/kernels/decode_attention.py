"""Decode attention in Triton: one new token per sequence over its paged KV, split along the context.

A sequence's context is cut into equal splits so that few sequences still fill the device; each split leaves its output
and the logarithm of its weight, and a second kernel combines them (Flash-Decoding, Dao et al., 2023). Where the rows
alone fill the device, a context is one split and its output is final. The query heads that share a KV head form one
tile, so that keys are read once. Used by dispatch.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes
from backend.kernels.paged_kv import LOG2_E, cache_offsets

TARGET_PROGRAMS = 264  # two for each multiprocessor of an H100
MIN_SPLIT_TOKENS = 128  # shorter splits cost more to combine than they save
MAX_SPLITS = 64
MAX_HEADS_TILE = 64


def paged_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor,
                 scale: float, max_context_len: int) -> Tensor:
    """See reference.paged_decode. q [B, H, D] with any strides but the last; returns [B, H, D], contiguous.

    max_context_len only sizes the grid: longer contexts are still right, with fewer splits than would be best."""
    shapes.check_attention(q, k_cache, v_cache, block_tables, context_lens)
    num_rows, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if num_rows == 0:
        return output
    group = num_heads // num_kv_heads
    heads_tile = min(MAX_HEADS_TILE, max(16, triton.next_power_of_2(group)))  # tl.dot needs 16 rows
    dim_tile = triton.next_power_of_2(head_dim)
    programs = num_kv_heads * triton.cdiv(group, heads_tile)
    num_splits = _num_splits(num_rows * programs, max_context_len)
    partial, log_weights = output, None
    if num_splits > 1:
        partial = torch.empty((num_rows, num_heads, num_splits, head_dim), dtype=torch.float32, device=q.device)
        log_weights = torch.empty((num_rows, num_heads, num_splits), dtype=torch.float32, device=q.device)
    keys_tile = _keys_tile(dim_tile, q.dtype)
    _decode_split_kernel[(num_rows, programs, num_splits)](
        q, k_cache, v_cache, block_tables, context_lens, partial, log_weights, q.stride(0), q.stride(1),
        block_tables.stride(0), scale * LOG2_E, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size, HEADS_TILE=heads_tile, DIM_TILE=dim_tile, KEYS_TILE=keys_tile,
        IS_SPLIT=num_splits > 1, num_warps=4, num_stages=2)
    if num_splits > 1:
        _decode_combine_kernel[(num_rows, num_heads)](
            partial, log_weights, context_lens, output, num_splits, NUM_HEADS=num_heads, HEAD_DIM=head_dim,
            SPLITS_TILE=triton.next_power_of_2(num_splits), DIM_TILE=dim_tile, KEYS_TILE=keys_tile, num_warps=4)
    return output


def _num_splits(programs: int, max_context_len: int) -> int:
    wanted = triton.cdiv(TARGET_PROGRAMS, programs)
    return max(1, min(wanted, MAX_SPLITS, triton.cdiv(max_context_len, MIN_SPLIT_TOKENS)))


def _keys_tile(dim_tile: int, dtype: torch.dtype) -> int:
    # A tile of keys and one of values, twice for the pipeline, stay below 64 KiB of shared memory.
    return max(16, min(64, 8192 // (dim_tile * dtype.itemsize // 2)))


@triton.jit
def _split_tokens(context_len, num_splits, KEYS_TILE: tl.constexpr):
    # Tokens of every split but the last used one. Rounded up to whole tiles, so the last splits may be unused.
    return tl.cdiv(tl.cdiv(context_len, num_splits), KEYS_TILE) * KEYS_TILE


# Steps differ in these by chance (M divisible by 16, rows cut at an odd address); one compilation serves all of them.
@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["block_tables", "context_lens"])
def _decode_split_kernel(q, k_cache, v_cache, block_tables, context_lens, partial, log_weights,
                         q_row_stride, q_head_stride, table_stride, scale_log2,
                         NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                         BLOCK_SIZE: tl.constexpr, HEADS_TILE: tl.constexpr, DIM_TILE: tl.constexpr,
                         KEYS_TILE: tl.constexpr, IS_SPLIT: tl.constexpr):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) % NUM_KV_HEADS
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    context_len = tl.load(context_lens + row)
    split_tokens = _split_tokens(context_len, num_splits, KEYS_TILE)
    first_token = split * split_tokens
    last_token = tl.minimum(first_token + split_tokens, context_len)
    if first_token >= last_token:
        return

    member = tl.program_id(1) // NUM_KV_HEADS * HEADS_TILE + tl.arange(0, HEADS_TILE)  # which head of the group
    head = kv_head * GROUP + member
    column = tl.arange(0, DIM_TILE)
    inside = (member < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    query = tl.load(q + row * q_row_stride + head[:, None] * q_head_stride + column[None, :], mask=inside, other=0.0)

    best = tl.full([HEADS_TILE], float("-inf"), tl.float32)
    weight = tl.zeros([HEADS_TILE], tl.float32)
    attended = tl.zeros([HEADS_TILE, DIM_TILE], tl.float32)
    for start in range(first_token, last_token, KEYS_TILE):
        token = start + tl.arange(0, KEYS_TILE)
        valid = token < last_token
        offset = cache_offsets(block_tables + row * table_stride, token, valid, kv_head,
                               NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
        key = tl.load(k_cache + offset[None, :] + column[:, None],
                      mask=valid[None, :] & (column < HEAD_DIM)[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale_log2
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        probability = tl.exp2(scores - new_best[:, None])
        decay = tl.exp2(best - new_best)
        value = tl.load(v_cache + offset[:, None] + column[None, :],
                        mask=valid[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
        attended = tl.dot(probability.to(value.dtype), value, attended * decay[:, None], input_precision="ieee")
        weight = weight * decay + tl.sum(probability, axis=1)
        best = new_best

    target = (row * NUM_HEADS + head) * num_splits + split
    if IS_SPLIT:
        tl.store(log_weights + target, best + tl.log2(weight), mask=member < GROUP)
    attended = (attended / weight[:, None]).to(partial.dtype.element_ty)
    tl.store(partial + target[:, None] * HEAD_DIM + column[None, :], attended, mask=inside)


@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["context_lens"])
def _decode_combine_kernel(partial, log_weights, context_lens, output, num_splits,
                           NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS_TILE: tl.constexpr,
                           DIM_TILE: tl.constexpr, KEYS_TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    context_len = tl.load(context_lens + row)
    if context_len == 0:
        return
    used_splits = tl.cdiv(context_len, _split_tokens(context_len, num_splits, KEYS_TILE))
    head = row * NUM_HEADS + tl.program_id(1)
    split = tl.arange(0, SPLITS_TILE)
    column = tl.arange(0, DIM_TILE)
    used = split < used_splits
    log_weight = tl.load(log_weights + head * num_splits + split, mask=used, other=float("-inf"))
    weight = tl.exp2(log_weight - tl.max(log_weight, axis=0))
    values = tl.load(partial + (head * num_splits + split)[:, None] * HEAD_DIM + column[None, :],
                     mask=used[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    combined = tl.sum(values * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(output + head * HEAD_DIM + column, combined.to(output.dtype.element_ty), mask=column < HEAD_DIM)
