"""Prefill attention for Hopper, in Gluon: the tensor cores are fed by one warp, and kept busy by two groups of warps.

What Triton's compiler leaves open is fixed here, after FlashAttention-3 (Shah et al., 2024): a warp that only copies
blocks of keys and values into shared memory (TMA), and two warp groups of 64 rows that multiply (wgmma) and compute the
softmax; a group's next scores are multiplied while its last ones are still being added up, and one group's softmax runs
beside the other group's multiplications. Used by prefill_attention.py, which owns the tests of shapes and the fallback.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from backend.kernels.paged_kv import LOG2_E

GROUP_ROWS = gl.constexpr(64)  # rows of one warp group: wgmma's own tile
ROWS_TILE = gl.constexpr(128)
TILES, PIN, TURNS, GROUPS = (128, 2), 0, 0, 2
PANEL = gl.constexpr(64)  # columns of one swizzled panel: 128 bytes, TMA's widest


def hopper_prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor,
                   query_start: Tensor, output: Tensor, scale: float, max_query_len: int) -> None:
    num_heads, head_dim = q.shape[1:]
    num_blocks, block_size, num_kv_heads, _ = k_cache.shape
    group = num_heads // num_kv_heads
    dim_tile = max(64, triton.next_power_of_2(head_dim))
    keys_tile, stages = TILES if dim_tile <= 128 else (64, 2)
    box = min(keys_tile, block_size & -block_size)
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    shape, strides = list(k_cache.shape), list(k_cache.stride())
    keys = TensorDescriptor(k_cache, shape, strides, [1, box, 1, 64], layout)
    values = TensorDescriptor(v_cache, shape, strides, [1, box, 1, 64], layout)
    queries_tile = 64 * GROUPS // group
    _hopper_prefill_kernel[(triton.cdiv(max_query_len, queries_tile), num_kv_heads, len(context_lens))](
        q, keys, values, block_tables, context_lens, query_start, output, q.stride(0), q.stride(1),
        block_tables.stride(0), scale * LOG2_E, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size, QUERIES_TILE=queries_tile, KEYS_TILE=keys_tile, DIM_TILE=dim_tile, BOX=box,
        STAGES=stages, **{**dict(PIN=PIN, TURNS=TURNS, GROUPS=GROUPS)}, num_warps=4)


@gluon.jit
def _load(keys, values, block_table, k_boxes, v_boxes, k_ready, k_free, v_ready, v_free, kv_head, num_keys,
          BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr, BOX: gl.constexpr,
          STAGES: gl.constexpr):
    """The copying warp: every tile of keys and values, in order."""
    for tile in range(gl.cdiv(num_keys, KEYS_TILE)):
        stage = tile % STAGES
        phase = (tile // STAGES & 1) ^ 1
        mbarrier.wait(k_free.index(stage), phase)
        mbarrier.expect(k_ready.index(stage), KEYS_TILE * DIM_TILE * 2)
        _load_tile(keys, block_table, k_boxes, k_ready.index(stage), tile, stage, kv_head, num_keys,
                   BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX)
        mbarrier.wait(v_free.index(stage), phase)
        mbarrier.expect(v_ready.index(stage), KEYS_TILE * DIM_TILE * 2)
        _load_tile(values, block_table, v_boxes, v_ready.index(stage), tile, stage, kv_head, num_keys,
                   BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX)


@gluon.jit
def _load_tile(cache, block_table, boxes, ready, tile, stage, kv_head, num_keys,
               BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr, BOX: gl.constexpr):
    PANELS: gl.constexpr = DIM_TILE // PANEL
    BOXES: gl.constexpr = KEYS_TILE // BOX
    for box in gl.static_range(BOXES):
        token = tile * KEYS_TILE + box * BOX
        valid = gl.minimum(gl.maximum(num_keys - token, 0), BOX)
        block = gl.load(block_table + token // BLOCK_SIZE, mask=valid > 0, other=0)
        row = gl.where(valid > 0, token % BLOCK_SIZE + valid, 0) - BOX
        for panel in gl.static_range(PANELS):
            tma.async_copy_global_to_shared(cache, [block, row, kv_head, panel * PANEL], ready,
                                            boxes.index((stage * PANELS + panel) * BOXES + box))


@gluon.jit
def _attend(q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
            first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride, q_head_stride,
            scale_log2, GROUP_INDEX: gl.constexpr, NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr,
            HEAD_DIM: gl.constexpr, QUERIES_TILE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr,
            BOX: gl.constexpr, STAGES: gl.constexpr, PIN: gl.constexpr, TURNS: gl.constexpr):
    """A multiplying warp group: 64 rows against every tile."""
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS_TILE, 16])
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM_TILE, 16])
    probability_layout: gl.constexpr = gl.DotOperandLayout(0, output_layout, 2)
    rows_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    global_layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // DIM_TILE if DIM_TILE < 256 else 1, DIM_TILE // 8],
                                                   [4, 1], [1, 0])
    dtype: gl.constexpr = output.dtype.element_ty

    # Queries, through registers: any group size, any strides.
    tile_row = GROUP_INDEX * GROUP_ROWS + gl.arange(0, GROUP_ROWS, layout=gl.SliceLayout(1, global_layout))
    query = tile_start + tile_row // GROUP
    head = kv_head * GROUP + tile_row % GROUP
    column = gl.arange(0, DIM_TILE, layout=gl.SliceLayout(0, global_layout))
    inside = ((query < num_queries) & (tile_row < QUERIES_TILE * GROUP))[:, None] & (column < HEAD_DIM)[None, :]
    token = (first_query + query).to(gl.int64)
    q_own = q_shared.index(GROUP_INDEX)
    q_own.store(gl.load(q + token[:, None] * q_token_stride + head[:, None] * q_head_stride + column[None, :],
                        mask=inside, other=0.0))
    fence_async_shared()

    score_row = GROUP_INDEX * GROUP_ROWS + gl.arange(0, GROUP_ROWS, layout=rows_layout)
    position = context_len - num_queries + tile_start + score_row // GROUP
    key = gl.arange(0, KEYS_TILE, layout=gl.SliceLayout(0, scores_layout))
    nothing = gl.zeros([GROUP_ROWS, KEYS_TILE], gl.float32, scores_layout)
    attended = gl.zeros([GROUP_ROWS, DIM_TILE], gl.float32, output_layout)

    num_tiles = gl.cdiv(num_keys, KEYS_TILE)
    first_position = context_len - num_queries + tile_start + GROUP_INDEX * GROUP_ROWS // GROUP
    num_full = gl.minimum(first_position + 1, num_keys) // KEYS_TILE

    mbarrier.wait(k_ready.index(0), 0)
    scores = warpgroup_mma(q_own, k_tiles.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [scores])
    mbarrier.arrive(k_free.index(0))
    scores = _hide(scores, 0, key, position, num_keys, KEYS_TILE, BOX)
    best = gl.max(scores, axis=1) * scale_log2
    probability = gl.exp2(scores * scale_log2 - best[:, None])
    weight = gl.sum(probability, axis=1)
    probability = gl.convert_layout(probability.to(dtype), probability_layout)

    for tile in range(1, num_full):
        attended, probability, best, weight = _next_tile(
            attended, probability, best, weight, tile, q_own, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn, GROUP_INDEX, TURNS,
            nothing, key, position, num_keys, scale_log2, False, PIN, KEYS_TILE, BOX, STAGES, probability_layout,
            output_layout)
    for tile in range(gl.maximum(1, num_full), num_tiles):
        attended, probability, best, weight = _next_tile(
            attended, probability, best, weight, tile, q_own, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn, GROUP_INDEX, TURNS,
            nothing, key, position, num_keys, scale_log2, True, PIN, KEYS_TILE, BOX, STAGES, probability_layout,
            output_layout)

    last = num_tiles - 1
    mbarrier.wait(v_ready.index(last % STAGES), last // STAGES & 1)
    attended = warpgroup_mma(probability, v_tiles.index(last % STAGES), attended, is_async=True)
    attended = warpgroup_mma_wait(0, [attended])
    attended = attended / gl.convert_layout(weight, gl.SliceLayout(1, output_layout))[:, None]
    q_own.store(attended.to(dtype))
    target = output + (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + column[None, :]
    gl.store(target, q_own.load(global_layout), mask=inside)


@gluon.jit
def _next_tile(attended, probability, best, weight, tile, q_own, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn, GROUP_INDEX: gl.constexpr, TURNS: gl.constexpr,
               nothing, key, position, num_keys, scale_log2, HIDE: gl.constexpr, PIN: gl.constexpr, KEYS_TILE: gl.constexpr,
               BOX: gl.constexpr, STAGES: gl.constexpr, probability_layout: gl.constexpr,
               output_layout: gl.constexpr):
    stage = tile % STAGES
    last_stage = (tile - 1) % STAGES
    mbarrier.wait(k_ready.index(stage), tile // STAGES & 1)
    if TURNS:
        mbarrier.wait(turn.index(GROUP_INDEX), (tile & 1) ^ GROUP_INDEX)
    scores = warpgroup_mma(q_own, k_tiles.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(last_stage), (tile - 1) // STAGES & 1)
    attended = warpgroup_mma(probability, v_tiles.index(last_stage), attended, is_async=True)
    if TURNS:
        mbarrier.arrive(turn.index(1 - GROUP_INDEX))
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_free.index(stage))
    if HIDE:
        scores = _hide(scores, tile, key, position, num_keys, KEYS_TILE, BOX)
    new_best = gl.maximum(best, gl.max(scores, axis=1) * scale_log2)
    decay = gl.exp2(best - new_best)
    new_probability = gl.exp2(scores * scale_log2 - new_best[:, None])
    weight = weight * decay + gl.sum(new_probability, axis=1)
    if PIN == 1:
        weight = gl.inline_asm_elementwise("{.reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p trap; mov.f32 $0, $1;}",
                                           "=f,f", [weight], dtype=gl.float32, is_pure=False, pack=1)
    if PIN == 2:
        weight = gl.inline_asm_elementwise("{.reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p membar.cta; mov.f32 $0, $1;}",
                                           "=f,f", [weight], dtype=gl.float32, is_pure=False, pack=1)
    if PIN == 3:
        weight = gl.inline_asm_elementwise("{.reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p exit; mov.f32 $0, $1;}",
                                           "=f,f", [weight], dtype=gl.float32, is_pure=False, pack=1)
    attended, probability = warpgroup_mma_wait(0, [attended, probability])
    mbarrier.arrive(v_free.index(last_stage))
    attended = attended * gl.convert_layout(decay, gl.SliceLayout(1, output_layout))[:, None]
    probability = gl.convert_layout(new_probability.to(probability.dtype), probability_layout)
    return attended, probability, new_best, weight


@gluon.jit
def _hide(scores, tile, key, position, num_keys, KEYS_TILE: gl.constexpr, BOX: gl.constexpr):
    """-inf where a key lies after its query, or is no key: a box that the context ends in is filled from its end."""
    first = tile * KEYS_TILE + key // BOX * BOX
    empty = gl.maximum(first + BOX - num_keys, 0)
    key_position = first + key % BOX - empty
    visible = (key_position[None, :] <= position[:, None]) & (key_position >= first)[None, :]
    return gl.where(visible, scores, float("-inf"))


# Steps differ in these by chance (M divisible by 16, rows cut at an odd address); one compilation serves all of them.
@gluon.jit(do_not_specialize=["table_stride"],
           do_not_specialize_on_alignment=["block_tables", "context_lens", "query_start"])
def _hopper_prefill_kernel(q, keys, values, block_tables, context_lens, query_start, output,
                           q_token_stride, q_head_stride, table_stride, scale_log2,
                           NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr,
                           BLOCK_SIZE: gl.constexpr, QUERIES_TILE: gl.constexpr, KEYS_TILE: gl.constexpr,
                           DIM_TILE: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr, PIN: gl.constexpr, TURNS: gl.constexpr, GROUPS: gl.constexpr):
    kv_head = gl.program_id(1)
    sequence = gl.program_id(2).to(gl.int64)
    first_query = gl.load(query_start + sequence)
    num_queries = gl.load(query_start + sequence + 1) - first_query
    tile_start = (gl.num_programs(0) - 1 - gl.program_id(0)) * QUERIES_TILE  # the longest first
    if tile_start < num_queries:
        context_len = gl.load(context_lens + sequence)
        num_keys = gl.minimum(context_len, context_len - num_queries + tile_start + QUERIES_TILE)
        dtype: gl.constexpr = output.dtype.element_ty
        PIECES: gl.constexpr = STAGES * (DIM_TILE // PANEL) * (KEYS_TILE // BOX)
        tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
        q_shared = gl.allocate_shared_memory(dtype, [GROUPS, GROUP_ROWS, DIM_TILE], tile_layout)
        k_boxes = gl.allocate_shared_memory(dtype, [PIECES, 1, BOX, 1, PANEL], keys.layout)
        v_boxes = gl.allocate_shared_memory(dtype, [PIECES, 1, BOX, 1, PANEL], keys.layout)
        k_tiles = k_boxes._reinterpret(dtype, [STAGES, KEYS_TILE, DIM_TILE], tile_layout)
        v_tiles = v_boxes._reinterpret(dtype, [STAGES, KEYS_TILE, DIM_TILE], tile_layout)
        k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for group in gl.static_range(2):
            mbarrier.init(turn.index(group), count=1)
        for stage in gl.static_range(STAGES):
            mbarrier.init(k_ready.index(stage), count=1)
            mbarrier.init(v_ready.index(stage), count=1)
            mbarrier.init(k_free.index(stage), count=GROUPS)
            mbarrier.init(v_free.index(stage), count=GROUPS)
        fence_async_shared()
        block_table = block_tables + sequence * table_stride
        if GROUPS == 2:
            gl.warp_specialize([
                (_attend, (q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
                       first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride,
                       q_head_stride, scale_log2, 0, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE, KEYS_TILE,
                       DIM_TILE, BOX, STAGES, PIN, TURNS)),
                (_attend, (q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
                       first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride,
                       q_head_stride, scale_log2, 1, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE, KEYS_TILE,
                       DIM_TILE, BOX, STAGES, PIN, TURNS)),
                (_load, (keys, values, block_table, k_boxes, v_boxes, k_ready, k_free, v_ready, v_free, kv_head, num_keys,
                     BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX, STAGES)),
            ], [4, 1], [240, 24])
        else:
            gl.warp_specialize([
                (_attend, (q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
                       first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride,
                       q_head_stride, scale_log2, 0, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE, KEYS_TILE,
                       DIM_TILE, BOX, STAGES, PIN, TURNS)),
                (_attend, (q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
                       first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride,
                       q_head_stride, scale_log2, 1, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE, KEYS_TILE,
                       DIM_TILE, BOX, STAGES, PIN, TURNS)),
                (_attend, (q, output, q_shared, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, turn,
                       first_query, num_queries, context_len, tile_start, kv_head, num_keys, q_token_stride,
                       q_head_stride, scale_log2, 2, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE, KEYS_TILE,
                       DIM_TILE, BOX, STAGES, PIN, TURNS)),
                (_load, (keys, values, block_table, k_boxes, v_boxes, k_ready, k_free, v_ready, v_free, kv_head, num_keys,
                     BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX, STAGES)),
            ], [4, 4, 1], [160, 160, 24])
