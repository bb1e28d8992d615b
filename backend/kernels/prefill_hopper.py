"""Prefill attention for Hopper, in Gluon: one warp copies keys and values, two groups of warps do the arithmetic.

After FlashAttention-3 (Shah et al., 2024), because what Triton's compiler makes of a loop leaves the tensor cores idle
half of the time. The copying warp fetches boxes of the paged cache into shared memory (TMA), as far ahead as there is
room. Each warp group multiplies 64 rows (wgmma) on its own: it issues its next scores together with the last weighted
sum, and its softmax runs while the other group multiplies. A program stays on its multiprocessor and draws tile after
tile, so that the next tile's keys arrive during the last one's end. Used by prefill_attention.py, which checks shapes.
"""

from __future__ import annotations

import functools

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

ROWS_TILE = 128
PANEL = 64  # columns: 128 bytes, the widest row that shared memory swizzles
STAGES = 2

_BOX_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)


def supports(q: Tensor, k_cache: Tensor) -> bool:
    """Whether hopper_prefill computes this: two-byte values on a GPU of compute capability 9, blocks that TMA can cut.

    q [T, H, D], k_cache [N, S, K, D], which have passed shapes.check_attention."""
    group = q.shape[1] // k_cache.shape[2]
    return (q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and _processors(q.device.index)[0]
            and k_cache.shape[1] % 8 == 0 and k_cache.shape[3] % 8 == 0 and group <= ROWS_TILE)


def hopper_prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor,
                   query_start: Tensor, scale: float) -> Tensor:
    """See reference.paged_prefill. q [T, H, D] with any strides but the last; returns [T, H, D], contiguous."""
    num_tokens, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    queries_tile = ROWS_TILE * num_kv_heads // num_heads
    dim_tile = max(PANEL, triton.next_power_of_2(head_dim))
    keys_tile = 128 if dim_tile <= 128 else 64
    box = min(keys_tile, block_size & -block_size)
    shape, strides, cut = list(k_cache.shape), list(k_cache.stride()), [1, box, 1, PANEL]
    # Every row begins a tile; see _find_tile.
    num_slots = num_tokens // queries_tile + len(context_lens)
    num_items = num_slots * num_kv_heads
    _prefill_kernel[(min(num_items, _processors(q.device.index)[1]),)](
        q, TensorDescriptor(k_cache, shape, strides, cut, _BOX_LAYOUT),
        TensorDescriptor(v_cache, shape, strides, cut, _BOX_LAYOUT), block_tables, context_lens, query_start, output,
        torch.zeros(1, dtype=torch.int32, device=q.device), len(context_lens), num_slots, num_items, q.stride(0),
        q.stride(1), block_tables.stride(0), scale * LOG2_E, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim, BLOCK_SIZE=block_size, QUERIES_TILE=queries_tile, KEYS_TILE=keys_tile, DIM_TILE=dim_tile,
        BOX=box, NUM_STAGES=STAGES, num_warps=4)
    return output


@functools.cache
def _processors(device: int) -> tuple[bool, int]:
    """(is Hopper, number of multiprocessors) of a device."""
    properties = torch.cuda.get_device_properties(device)
    return properties.major == 9, properties.multi_processor_count


# Steps differ in these by chance; one compilation serves all of them.
@gluon.jit(do_not_specialize=["num_rows", "num_slots", "num_items", "table_stride"],
           do_not_specialize_on_alignment=["block_tables", "context_lens", "query_start", "counter"])
def _prefill_kernel(q, keys, values, block_tables, context_lens, query_start, output, counter, num_rows, num_slots,
                    num_items, q_token_stride, q_head_stride, table_stride, scale_log2,
                    NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr,
                    BLOCK_SIZE: gl.constexpr, QUERIES_TILE: gl.constexpr, KEYS_TILE: gl.constexpr,
                    DIM_TILE: gl.constexpr, BOX: gl.constexpr, NUM_STAGES: gl.constexpr):
    dtype: gl.constexpr = output.dtype.element_ty
    NUM_BOXES: gl.constexpr = NUM_STAGES * (KEYS_TILE // BOX) * (DIM_TILE // PANEL_COLUMNS)
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    q_tiles = gl.allocate_shared_memory(dtype, [2, GROUP_ROWS, DIM_TILE], tile_layout)
    k_boxes = gl.allocate_shared_memory(dtype, [NUM_BOXES, 1, BOX, 1, PANEL_COLUMNS], keys.layout)
    v_boxes = gl.allocate_shared_memory(dtype, [NUM_BOXES, 1, BOX, 1, PANEL_COLUMNS], values.layout)
    # A tile is its panels one after the other, a panel is its boxes one after the other.
    k_tiles = k_boxes._reinterpret(dtype, [NUM_STAGES, KEYS_TILE, DIM_TILE], tile_layout)
    v_tiles = v_boxes._reinterpret(dtype, [NUM_STAGES, KEYS_TILE, DIM_TILE], tile_layout)
    work = gl.allocate_shared_memory(gl.int32, [2 * WORK_FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    k_ready, k_free = _barriers(NUM_STAGES), _barriers(NUM_STAGES)
    v_ready, v_free = _barriers(NUM_STAGES), _barriers(NUM_STAGES)
    work_ready, work_free = _barriers(2), _barriers(2)
    for stage in gl.static_range(NUM_STAGES):
        mbarrier.init(k_ready.index(stage), count=1)
        mbarrier.init(v_ready.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=2)
        mbarrier.init(v_free.index(stage), count=2)
    for slot in gl.static_range(2):
        mbarrier.init(work_ready.index(slot), count=1)
        mbarrier.init(work_free.index(slot), count=2)
    fence_async_shared()
    gl.warp_specialize([
        (_attend, (q, output, q_tiles, k_tiles, v_tiles, work, k_ready, k_free, v_ready, v_free, work_ready, work_free,
                   q_token_stride, q_head_stride, scale_log2, 0, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE,
                   KEYS_TILE, DIM_TILE, BOX, NUM_STAGES)),
        (_attend, (q, output, q_tiles, k_tiles, v_tiles, work, k_ready, k_free, v_ready, v_free, work_ready, work_free,
                   q_token_stride, q_head_stride, scale_log2, 1, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, QUERIES_TILE,
                   KEYS_TILE, DIM_TILE, BOX, NUM_STAGES)),
        (_copy, (keys, values, block_tables, context_lens, query_start, counter, k_boxes, v_boxes, work, k_ready,
                 k_free, v_ready, v_free, work_ready, work_free, num_rows, num_slots, num_items, table_stride,
                 QUERIES_TILE, BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX, NUM_STAGES)),
    ], [4, 1], [232, 40])


GROUP_ROWS = gl.constexpr(ROWS_TILE // 2)  # rows of a warp group: wgmma's own tile
PANEL_COLUMNS = gl.constexpr(PANEL)
WORK_FIELDS = gl.constexpr(5)


@gluon.jit
def _barriers(count: gl.constexpr):
    return gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())


@gluon.jit
def _copy(keys, values, block_tables, context_lens, query_start, counter, k_boxes, v_boxes, work, k_ready, k_free,
          v_ready, v_free, work_ready, work_free, num_rows, num_slots, num_items, table_stride,
          QUERIES_TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr,
          BOX: gl.constexpr, NUM_STAGES: gl.constexpr):
    """The copying warp: draws items, tells the warp groups what they are, and copies their keys and values."""
    copied = 0  # tiles of keys so far
    drawn = 0
    item = gl.program_id(0)
    while item < num_items:
        next_item = gl.num_programs(0) + gl.atomic_add(counter, 1)
        # The rows of a head one after the other, so that their keys stay in L2; the longest tiles of a row first.
        kv_head = item // num_slots
        row, tile_start, first_query, num_queries = _find_tile(
            query_start, num_rows, num_slots - 1 - item % num_slots, QUERIES_TILE)
        if tile_start < num_queries:
            context_len = gl.load(context_lens + row)
            _tell(work, work_ready, work_free, drawn, tile_start, kv_head, first_query, num_queries, context_len)
            drawn += 1
            block_table = block_tables + row.to(gl.int64) * table_stride
            num_keys = gl.minimum(context_len, context_len - num_queries + tile_start + QUERIES_TILE)
            num_tiles = gl.cdiv(num_keys, KEYS_TILE)
            for tile in range(num_tiles):
                stage = (copied + tile) % NUM_STAGES
                phase = ((copied + tile) // NUM_STAGES & 1) ^ 1
                _copy_tile(keys, block_table, k_boxes, k_ready.index(stage), k_free.index(stage), phase, tile, stage,
                           kv_head, num_keys, BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX)
                _copy_tile(values, block_table, v_boxes, v_ready.index(stage), v_free.index(stage), phase, tile, stage,
                           kv_head, num_keys, BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX)
            copied += num_tiles
        item = next_item
    _tell(work, work_ready, work_free, drawn, -1, 0, 0, 0, 0)


@gluon.jit
def _find_tile(query_start, num_rows, slot, QUERIES_TILE: gl.constexpr):
    """Row and first query of a tile. Row b's tiles have the slots from query_start[b] // QUERIES_TILE + b on: room
    enough, since each row adds one, with at most one slot to spare, which then lies behind the row's queries."""
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        is_before = gl.load(query_start + middle) // QUERIES_TILE + middle <= slot
        low = gl.where(is_before, middle, low)
        high = gl.where(is_before, high, middle)
    first_query = gl.load(query_start + low)
    num_queries = gl.load(query_start + low + 1) - first_query
    first_slot = first_query // QUERIES_TILE + low
    # Slots before the first row, which may begin after 0, hold nothing.
    tile_start = gl.where(slot < first_slot, num_queries, (slot - first_slot) * QUERIES_TILE)
    return low, tile_start, first_query, num_queries


@gluon.jit
def _copy_tile(cache, block_table, boxes, ready, free, phase, tile, stage, kv_head, num_keys,
               BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr, BOX: gl.constexpr):
    """One tile of keys or values. Values after num_keys must be zero, since NaN times no weight were NaN. A box has no
    mask, but its rows outside of a block are zero: so a box in which the keys end is moved back until it ends there."""
    NUM_PANELS: gl.constexpr = DIM_TILE // PANEL_COLUMNS
    NUM_BOXES: gl.constexpr = KEYS_TILE // BOX
    mbarrier.wait(free, phase)
    mbarrier.expect(ready, KEYS_TILE * DIM_TILE * 2)
    for box in gl.static_range(NUM_BOXES):
        token = tile * KEYS_TILE + box * BOX
        valid = gl.minimum(gl.maximum(num_keys - token, 0), BOX)
        block = gl.load(block_table + token // BLOCK_SIZE, mask=valid > 0, other=0)
        first = gl.where(valid > 0, token % BLOCK_SIZE + valid, 0) - BOX
        for panel in gl.static_range(NUM_PANELS):
            tma.async_copy_global_to_shared(cache, [block, first, kv_head, panel * PANEL_COLUMNS], ready,
                                            boxes.index((stage * NUM_PANELS + panel) * NUM_BOXES + box))


@gluon.jit
def _tell(work, work_ready, work_free, drawn, tile_start, kv_head, first_query, num_queries, context_len):
    slot = drawn % 2
    mbarrier.wait(work_free.index(slot), (drawn // 2 & 1) ^ 1)
    _write(work, slot, 0, tile_start)
    _write(work, slot, 1, kv_head)
    _write(work, slot, 2, first_query)
    _write(work, slot, 3, num_queries)
    _write(work, slot, 4, context_len)
    mbarrier.arrive(work_ready.index(slot))


@gluon.jit
def _write(work, slot, FIELD: gl.constexpr, value):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    work.index(slot * WORK_FIELDS + FIELD).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def _read(work, slot, FIELD: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(work.index(slot * WORK_FIELDS + FIELD).load(layout), axis=0)


@gluon.jit
def _attend(q, output, q_tiles, k_tiles, v_tiles, work, k_ready, k_free, v_ready, v_free, work_ready, work_free,
            q_token_stride, q_head_stride, scale_log2, WARP_GROUP: gl.constexpr, NUM_HEADS: gl.constexpr,
            NUM_KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, QUERIES_TILE: gl.constexpr, KEYS_TILE: gl.constexpr,
            DIM_TILE: gl.constexpr, BOX: gl.constexpr, NUM_STAGES: gl.constexpr):
    """A warp group: its 64 rows of every tile that the copying warp tells."""
    GROUP: gl.constexpr = NUM_HEADS // NUM_KV_HEADS
    dtype: gl.constexpr = output.dtype.element_ty
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS_TILE, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM_TILE, 16])
    memory_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM_TILE, DIM_TILE // 8], [4, 1], [1, 0])

    memory_row = WARP_GROUP * GROUP_ROWS + gl.arange(0, GROUP_ROWS, layout=gl.SliceLayout(1, memory_layout))
    column = gl.arange(0, DIM_TILE, layout=gl.SliceLayout(0, memory_layout))
    score_row = WARP_GROUP * GROUP_ROWS + gl.arange(0, GROUP_ROWS, layout=gl.SliceLayout(1, scores_layout))
    key = gl.arange(0, KEYS_TILE, layout=gl.SliceLayout(0, scores_layout))
    q_tile = q_tiles.index(WARP_GROUP)

    done = 0  # tiles of keys so far
    drawn = 0
    mbarrier.wait(work_ready.index(0), 0)
    tile_start = _read(work, 0, 0)
    while tile_start >= 0:
        slot = drawn % 2
        kv_head = _read(work, slot, 1)
        first_query = _read(work, slot, 2)
        num_queries = _read(work, slot, 3)
        context_len = _read(work, slot, 4)
        mbarrier.arrive(work_free.index(slot))

        query = tile_start + memory_row // GROUP
        head = kv_head * GROUP + memory_row % GROUP
        token = (first_query + query).to(gl.int64)
        # QUERIES_TILE * GROUP can be less than ROWS_TILE; the rows left over belong to the next tile.
        inside = ((query < num_queries) & (memory_row < QUERIES_TILE * GROUP))[:, None] & (column < HEAD_DIM)[None, :]
        q_tile.store(gl.load(q + token[:, None] * q_token_stride + head[:, None] * q_head_stride + column[None, :],
                             mask=inside, other=0.0))
        fence_async_shared()

        first_position = context_len - num_queries + tile_start
        position = first_position + score_row // GROUP
        num_keys = gl.minimum(context_len, first_position + QUERIES_TILE)
        num_tiles = gl.cdiv(num_keys, KEYS_TILE)
        # Tiles that every row of the group sees whole.
        num_full = gl.minimum(num_keys, first_position + WARP_GROUP * GROUP_ROWS // GROUP + 1) // KEYS_TILE

        # Every row sees key 0, in the first tile, so that best is finite from there on.
        scores = _scores(q_tile, k_tiles, k_ready, done, KEYS_TILE, scores_layout, NUM_STAGES)
        scores = warpgroup_mma_wait(0, [scores])
        mbarrier.arrive(k_free.index(done % NUM_STAGES))
        scores = _hide(scores, 0, key, position, num_keys, KEYS_TILE, BOX)
        best = gl.max(scores, axis=1) * scale_log2
        probability = gl.exp2(scores * scale_log2 - best[:, None])
        weight = gl.sum(probability, axis=1)
        probability = gl.convert_layout(probability.to(dtype), gl.DotOperandLayout(0, sums_layout, 2))
        attended = gl.zeros([GROUP_ROWS, DIM_TILE], gl.float32, sums_layout)
        for tile in range(1, num_full):
            attended, probability, best, weight = _next_tile(
                attended, probability, best, weight, q_tile, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free,
                done + tile, tile, key, position, num_keys, scale_log2, False, KEYS_TILE, BOX, NUM_STAGES)
        for tile in range(gl.maximum(1, num_full), num_tiles):
            attended, probability, best, weight = _next_tile(
                attended, probability, best, weight, q_tile, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free,
                done + tile, tile, key, position, num_keys, scale_log2, True, KEYS_TILE, BOX, NUM_STAGES)
        done += num_tiles
        attended = _weighted_sum(attended, probability, v_tiles, v_ready, done - 1, NUM_STAGES)
        attended = warpgroup_mma_wait(0, [attended])
        mbarrier.arrive(v_free.index((done - 1) % NUM_STAGES))

        attended *= gl.convert_layout(1.0 / weight, gl.SliceLayout(1, sums_layout))[:, None]
        q_tile.store(attended.to(dtype))  # so that the rows leave in whole lines
        gl.store(output + (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + column[None, :],
                 q_tile.load(memory_layout), mask=inside)

        drawn += 1
        mbarrier.wait(work_ready.index(drawn % 2), drawn // 2 & 1)
        tile_start = _read(work, drawn % 2, 0)


@gluon.jit
def _next_tile(attended, probability, best, weight, q_tile, k_tiles, v_tiles, k_ready, k_free, v_ready, v_free, step,
               tile, key, position, num_keys, scale_log2, HIDE: gl.constexpr, KEYS_TILE: gl.constexpr,
               BOX: gl.constexpr, NUM_STAGES: gl.constexpr):
    """The scores of a tile of keys, while the values of the one before are added up."""
    scores_layout: gl.constexpr = key.type.layout.parent
    scores = _scores(q_tile, k_tiles, k_ready, step, KEYS_TILE, scores_layout, NUM_STAGES)
    attended = _weighted_sum(attended, probability, v_tiles, v_ready, step - 1, NUM_STAGES)
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_free.index(step % NUM_STAGES))
    if HIDE:
        scores = _hide(scores, tile, key, position, num_keys, KEYS_TILE, BOX)
    new_best = gl.maximum(best, gl.max(scores, axis=1) * scale_log2)
    decay = gl.exp2(best - new_best)
    new_probability = gl.exp2(scores * scale_log2 - new_best[:, None])
    weight = weight * decay + gl.sum(new_probability, axis=1)
    attended, probability = warpgroup_mma_wait(0, [attended, probability])
    mbarrier.arrive(v_free.index((step - 1) % NUM_STAGES))
    attended *= gl.convert_layout(decay, gl.SliceLayout(1, attended.type.layout))[:, None]
    probability = gl.convert_layout(new_probability.to(probability.dtype), probability.type.layout)
    return attended, probability, new_best, weight


@gluon.jit
def _scores(q_tile, k_tiles, k_ready, step, KEYS_TILE: gl.constexpr, scores_layout: gl.constexpr,
            NUM_STAGES: gl.constexpr):
    mbarrier.wait(k_ready.index(step % NUM_STAGES), step // NUM_STAGES & 1)
    nothing = gl.zeros([GROUP_ROWS, KEYS_TILE], gl.float32, scores_layout)
    return warpgroup_mma(q_tile, k_tiles.index(step % NUM_STAGES).permute((1, 0)), nothing, use_acc=False,
                         is_async=True)


@gluon.jit
def _weighted_sum(attended, probability, v_tiles, v_ready, step, NUM_STAGES: gl.constexpr):
    mbarrier.wait(v_ready.index(step % NUM_STAGES), step // NUM_STAGES & 1)
    return warpgroup_mma(probability, v_tiles.index(step % NUM_STAGES), attended, is_async=True)


@gluon.jit
def _hide(scores, tile, key, position, num_keys, KEYS_TILE: gl.constexpr, BOX: gl.constexpr):
    """-inf where a key lies after the row's query. See _copy_tile for where the keys of a box lie."""
    first = tile * KEYS_TILE + key // BOX * BOX
    key_position = first + key % BOX - gl.maximum(first + BOX - num_keys, 0)
    key_position = gl.where(key_position >= first, key_position, 1 << 30)
    return gl.where(key_position[None, :] <= position[:, None], scores, float("-inf"))
