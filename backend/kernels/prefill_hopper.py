"""Prefill attention for Hopper, in Gluon: one warp copies keys and values, two groups of warps do the arithmetic.

After FlashAttention-3 (Shah et al., 2024), since a loop that leaves copies and order to Triton's compiler keeps the
tensor cores busy a quarter of the time. The copying warp fetches boxes of the paged cache into shared memory (TMA), as
far ahead as there is room. Each warp group multiplies 64 rows (wgmma) at its own pace, so that one group's softmax runs
while the other multiplies. A program stays on its multiprocessor and draws tile after tile of queries, so that the next
tile's queries and keys arrive during the last one's end. A quantised history is unpacked first, as many KV heads at a
time as there is scratch for: about 1 % of a prompt's time. Used by prefill_attention.py, which checks the shapes."""

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

from backend.forward_batch import LayerKv
from backend.kernels.capability import is_hopper, num_multiprocessors
from backend.kernels.kv_unpack import heads_at_a_time, unpack
from backend.kernels.paged_kv import LOG2_E

PANEL = 64  # columns: 128 bytes, the widest row that shared memory swizzles
GROUP_ROWS = 64  # of a warp group: wgmma's own tile
WORK_FIELDS = 5
STAGES = 2  # tiles of keys, and of values, in shared memory

_KV_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
_Q_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)


def supports(q: Tensor, cache: LayerKv, num_rows: int, sum_context_len: int) -> bool:
    """Whether hopper_prefill computes this: two-byte values on a GPU of compute capability 9, aligned as TMA needs it,
    and scratch for at least one head of a quantised history.

    q [T, H, D] and cache have passed shapes.check_attention."""
    num_heads, head_dim = q.shape[1:]
    return (is_hopper(q.device) and q.dtype in (torch.float16, torch.bfloat16)
            and cache.block_size % 8 == 0 and head_dim % 8 == 0 and num_heads <= GROUP_ROWS * cache.num_kv_heads
            and q.stride(0) % 8 == 0 and q.stride(1) % 8 == 0 and q.data_ptr() % 16 == 0
            and (cache.scales is None or heads_at_a_time(cache, q.dtype, num_rows, sum_context_len) > 0))


def hopper_prefill(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor, query_start: Tensor,
                   scale: float, max_context_len: int, sum_context_len: int) -> Tensor:
    """See reference.paged_prefill: the same for inputs that this file supports, with T and B at least 1.

    q [T, H, D] with any strides but the last; returns [T, H, D], contiguous."""
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if cache.scales is None:
        _attend_heads(q, cache, block_tables, context_lens, query_start, scale, output)
        return output
    group = q.shape[1] // cache.num_kv_heads
    step = heads_at_a_time(cache, q.dtype, len(context_lens), sum_context_len)
    for first in range(0, cache.num_kv_heads, step):
        unpacked, tables = unpack(cache, block_tables, context_lens, first, step, q.dtype, max_context_len,
                                  sum_context_len)
        heads = slice(first * group, (first + unpacked.num_kv_heads) * group)
        _attend_heads(q[:, heads], unpacked, tables, context_lens, query_start, scale, output[:, heads])
    return output


def _attend_heads(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor, query_start: Tensor,
                  scale: float, output: Tensor) -> None:
    """Fills output [T, h, D], some heads of a contiguous tensor; `cache`, in q's dtype, has theirs alone."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = cache.num_kv_heads, cache.block_size
    # A group of heads is padded to a power of two: the rows of the padding cost time, and are not stored.
    group = num_heads // num_kv_heads
    heads_tile = triton.next_power_of_2(group)
    group_queries = GROUP_ROWS // heads_tile
    dim_tile = max(PANEL, triton.next_power_of_2(head_dim))
    keys_tile, work_slots = (128, 2) if dim_tile <= 128 else (64, 1)  # what fits into 227 KiB of shared memory
    box = min(keys_tile, block_size & -block_size)
    kv_shape, kv_strides, kv_box = list(cache.k.shape), list(cache.k.stride()), [1, 1, box, PANEL]
    num_places = num_tokens // (2 * group_queries) + len(context_lens)  # see _find_tile
    num_items = num_places * num_kv_heads
    _prefill_kernel[(min(num_items, num_multiprocessors(q.device)),)](
        TensorDescriptor(q, list(q.shape), list(q.stride()), [group_queries, heads_tile, PANEL], _Q_LAYOUT),
        TensorDescriptor(cache.k, kv_shape, kv_strides, kv_box, _KV_LAYOUT),
        TensorDescriptor(cache.v, kv_shape, kv_strides, kv_box, _KV_LAYOUT),
        block_tables, context_lens, query_start, torch.zeros(1, dtype=torch.int32, device=q.device), output,
        len(context_lens), num_places, num_items, block_tables.stride(0), scale * LOG2_E,
        GROUP=group, TOKEN_STRIDE=output.stride(0), HEAD_DIM=head_dim, BLOCK_SIZE=block_size, HEADS_TILE=heads_tile,
        KEYS_TILE=keys_tile, DIM_TILE=dim_tile, BOX=box, NUM_STAGES=STAGES, NUM_SLOTS=work_slots, num_warps=4)


_PANEL, _GROUP_ROWS, _WORK_FIELDS = gl.constexpr(PANEL), gl.constexpr(GROUP_ROWS), gl.constexpr(WORK_FIELDS)


# Steps differ in these by chance; one compilation serves all of them.
@gluon.jit(do_not_specialize=["num_rows", "num_places", "num_items", "table_stride"],
           do_not_specialize_on_alignment=["block_tables", "context_lens", "query_start", "counter"])
def _prefill_kernel(queries, keys, values, block_tables, context_lens, query_start, counter, output,
                    num_rows, num_places, num_items, table_stride, scale_log2,
                    GROUP: gl.constexpr, TOKEN_STRIDE: gl.constexpr, HEAD_DIM: gl.constexpr,
                    BLOCK_SIZE: gl.constexpr, HEADS_TILE: gl.constexpr, KEYS_TILE: gl.constexpr,
                    DIM_TILE: gl.constexpr, BOX: gl.constexpr, NUM_STAGES: gl.constexpr, NUM_SLOTS: gl.constexpr):
    dtype: gl.constexpr = output.dtype.element_ty
    PANELS: gl.constexpr = DIM_TILE // _PANEL
    KV_BOXES: gl.constexpr = NUM_STAGES * PANELS * (KEYS_TILE // BOX)
    tile_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    # A tile is its panels one after the other, and a panel is its boxes one after the other.
    q_boxes = gl.allocate_shared_memory(
        dtype, [NUM_SLOTS * 2 * PANELS, _GROUP_ROWS // HEADS_TILE, HEADS_TILE, _PANEL], queries.layout)
    k_boxes = gl.allocate_shared_memory(dtype, [KV_BOXES, 1, 1, BOX, _PANEL], keys.layout)
    v_boxes = gl.allocate_shared_memory(dtype, [KV_BOXES, 1, 1, BOX, _PANEL], values.layout)
    q_tiles = q_boxes._reinterpret(dtype, [NUM_SLOTS * 2, _GROUP_ROWS, DIM_TILE], tile_layout)
    k_tiles = k_boxes._reinterpret(dtype, [NUM_STAGES, KEYS_TILE, DIM_TILE], tile_layout)
    v_tiles = v_boxes._reinterpret(dtype, [NUM_STAGES, KEYS_TILE, DIM_TILE], tile_layout)
    work = gl.allocate_shared_memory(gl.int32, [NUM_SLOTS * _WORK_FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    kv_barriers = (_barriers(NUM_STAGES, 1), _barriers(NUM_STAGES, 2),  # keys: ready, free (of both warp groups)
                   _barriers(NUM_STAGES, 1), _barriers(NUM_STAGES, 2))  # values
    work_barriers = (_barriers(NUM_SLOTS, 1), _barriers(NUM_SLOTS, 1), _barriers(NUM_SLOTS, 2))  # told, queries, free
    fence_async_shared()
    gl.warp_specialize([
        (_attend, (output, q_tiles, k_tiles, v_tiles, work, kv_barriers, work_barriers, scale_log2, 0, GROUP,
                   TOKEN_STRIDE, HEAD_DIM, HEADS_TILE, KEYS_TILE, DIM_TILE, BOX, NUM_STAGES, NUM_SLOTS)),
        (_attend, (output, q_tiles, k_tiles, v_tiles, work, kv_barriers, work_barriers, scale_log2, 1, GROUP,
                   TOKEN_STRIDE, HEAD_DIM, HEADS_TILE, KEYS_TILE, DIM_TILE, BOX, NUM_STAGES, NUM_SLOTS)),
        (_copy, (queries, keys, values, block_tables, context_lens, query_start, counter, q_boxes, k_boxes, v_boxes,
                 work, kv_barriers, work_barriers, num_rows, num_places, num_items, table_stride, GROUP, HEADS_TILE,
                 BLOCK_SIZE, KEYS_TILE, DIM_TILE, BOX, NUM_STAGES, NUM_SLOTS)),
    ], [4, 1], [232, 40])


@gluon.jit
def _barriers(NUMBER: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(index), count=ARRIVALS)
    return barriers


@gluon.jit
def _copy(queries, keys, values, block_tables, context_lens, query_start, counter, q_boxes, k_boxes, v_boxes, work,
          kv_barriers, work_barriers, num_rows, num_places, num_items, table_stride, GROUP: gl.constexpr,
          HEADS_TILE: gl.constexpr, BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr,
          BOX: gl.constexpr, NUM_STAGES: gl.constexpr, NUM_SLOTS: gl.constexpr):
    """The copying warp: draws items, tells the warp groups what they are, and copies their queries, keys and values."""
    QUERIES_TILE: gl.constexpr = 2 * _GROUP_ROWS // HEADS_TILE
    k_ready, k_free, v_ready, v_free = kv_barriers
    told, q_ready, work_free = work_barriers
    drawn = 0
    copied = 0  # tiles of keys
    item = gl.program_id(0)
    while item < num_items:
        next_item = gl.num_programs(0) + gl.atomic_add(counter, 1)  # asked for early: the answer takes a microsecond
        # All tiles of a KV head one after the other, so that its keys stay in L2; in a row the longest first.
        kv_head = item // num_places
        row, tile_start, first_query, num_queries = _find_tile(
            query_start, num_rows, num_places - 1 - item % num_places, QUERIES_TILE)
        if tile_start < num_queries:
            context_len = gl.load(context_lens + row)
            slot = drawn % NUM_SLOTS
            mbarrier.wait(work_free.index(slot), (drawn // NUM_SLOTS & 1) ^ 1)
            _tell(work, told, slot, tile_start, kv_head, first_query, num_queries, context_len)
            _copy_queries(queries, q_boxes, q_ready.index(slot), slot, first_query + tile_start, kv_head * GROUP,
                          HEADS_TILE, DIM_TILE)
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
    slot = drawn % NUM_SLOTS
    mbarrier.wait(work_free.index(slot), (drawn // NUM_SLOTS & 1) ^ 1)
    _tell(work, told, slot, -1, 0, 0, 0, 0)


@gluon.jit
def _find_tile(query_start, num_rows, place, QUERIES_TILE: gl.constexpr):
    """Which row's tile has this place, and where in the row it starts: at or behind its end where the place is empty.

    Row b's tiles have the places from query_start[b] // QUERIES_TILE + b on. That is room for all of them, since a row
    of n queries moves the next one on by at least n // QUERIES_TILE + 1; so a row leaves at most one place empty."""
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        is_before = gl.load(query_start + middle) // QUERIES_TILE + middle <= place
        low = gl.where(is_before, middle, low)
        high = gl.where(is_before, high, middle)
    first_query = gl.load(query_start + low)
    num_queries = gl.load(query_start + low + 1) - first_query
    first_place = first_query // QUERIES_TILE + low
    # The first row may begin after 0: the places before it are empty too.
    tile_start = gl.where(place < first_place, num_queries, (place - first_place) * QUERIES_TILE)
    return low, tile_start, first_query, num_queries


@gluon.jit
def _tell(work, told, slot, tile_start, kv_head, first_query, num_queries, context_len):
    _write(work, slot, 0, tile_start)  # -1: no more work
    _write(work, slot, 1, kv_head)
    _write(work, slot, 2, first_query)
    _write(work, slot, 3, num_queries)
    _write(work, slot, 4, context_len)
    mbarrier.arrive(told.index(slot))


@gluon.jit
def _write(work, slot, FIELD: gl.constexpr, value):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    work.index(slot * _WORK_FIELDS + FIELD).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def _read(work, slot, FIELD: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(work.index(slot * _WORK_FIELDS + FIELD).load(layout), axis=0)


@gluon.jit
def _copy_queries(queries, boxes, ready, slot, token, head, HEADS_TILE: gl.constexpr, DIM_TILE: gl.constexpr):
    """Both warp groups' rows, (query, head) pairs. Some may be of other rows, other groups, or zero: never stored."""
    PANELS: gl.constexpr = DIM_TILE // _PANEL
    mbarrier.expect(ready, 2 * _GROUP_ROWS * DIM_TILE * 2)
    for warp_group in gl.static_range(2):
        for panel in gl.static_range(PANELS):
            tma.async_copy_global_to_shared(
                queries, [token + warp_group * (_GROUP_ROWS // HEADS_TILE), head, panel * _PANEL], ready,
                boxes.index((slot * 2 + warp_group) * PANELS + panel))


@gluon.jit
def _copy_tile(cache, block_table, boxes, ready, free, phase, tile, stage, kv_head, num_keys,
               BLOCK_SIZE: gl.constexpr, KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr, BOX: gl.constexpr):
    """One tile of keys or values. Values behind num_keys must not come along: a weight of zero times NaN is NaN. A copy
    has no mask, but what it takes from outside of a block is zero: a box in which the keys end is moved back to end
    there, so that its first rows are zero, or earlier keys where blocks are longer than boxes. _hide knows."""
    PANELS: gl.constexpr = DIM_TILE // _PANEL
    BOXES: gl.constexpr = KEYS_TILE // BOX
    mbarrier.wait(free, phase)
    mbarrier.expect(ready, KEYS_TILE * DIM_TILE * 2)
    for box in gl.static_range(BOXES):
        token = tile * KEYS_TILE + box * BOX
        valid = gl.minimum(gl.maximum(num_keys - token, 0), BOX)
        block = gl.load(block_table + token // BLOCK_SIZE, mask=valid > 0, other=0)
        first = gl.where(valid > 0, token % BLOCK_SIZE + valid, 0) - BOX
        for panel in gl.static_range(PANELS):
            tma.async_copy_global_to_shared(cache, [block, kv_head, first, panel * _PANEL], ready,
                                            boxes.index((stage * PANELS + panel) * BOXES + box))


@gluon.jit
def _attend(output, q_tiles, k_tiles, v_tiles, work, kv_barriers, work_barriers, scale_log2, WARP_GROUP: gl.constexpr,
            GROUP: gl.constexpr, TOKEN_STRIDE: gl.constexpr, HEAD_DIM: gl.constexpr, HEADS_TILE: gl.constexpr,
            KEYS_TILE: gl.constexpr, DIM_TILE: gl.constexpr, BOX: gl.constexpr, NUM_STAGES: gl.constexpr,
            NUM_SLOTS: gl.constexpr):
    """A warp group: its 64 rows, which are (query, head) pairs, of every tile of which the copying warp tells."""
    QUERIES_TILE: gl.constexpr = 2 * _GROUP_ROWS // HEADS_TILE
    FIRST_QUERY: gl.constexpr = WARP_GROUP * _GROUP_ROWS // HEADS_TILE
    dtype: gl.constexpr = output.dtype.element_ty
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS_TILE, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM_TILE, 16])
    key = gl.arange(0, KEYS_TILE, layout=gl.SliceLayout(0, scores_layout))
    k_ready, k_free, v_ready, v_free = kv_barriers
    told, q_ready, work_free = work_barriers
    drawn = 0
    done = 0  # tiles of keys
    mbarrier.wait(told.index(0), 0)
    tile_start = _read(work, 0, 0)
    while tile_start >= 0:
        slot = drawn % NUM_SLOTS
        kv_head = _read(work, slot, 1)
        first_query = _read(work, slot, 2)
        num_queries = _read(work, slot, 3)
        context_len = _read(work, slot, 4)
        q_tile = q_tiles.index(slot * 2 + WARP_GROUP)
        mbarrier.wait(q_ready.index(slot), drawn // NUM_SLOTS & 1)

        first_position = context_len - num_queries + tile_start
        row = gl.arange(0, _GROUP_ROWS, layout=gl.SliceLayout(1, scores_layout))
        position = first_position + FIRST_QUERY + row // HEADS_TILE
        num_keys = gl.minimum(context_len, first_position + QUERIES_TILE)
        num_tiles = gl.cdiv(num_keys, KEYS_TILE)
        num_full = gl.minimum(num_keys, first_position + FIRST_QUERY + 1) // KEYS_TILE  # tiles that all rows see whole

        scores = _scores(q_tile, k_tiles, k_ready, done, KEYS_TILE, scores_layout, NUM_STAGES)
        scores = warpgroup_mma_wait(0, [scores])
        mbarrier.arrive(k_free.index(done % NUM_STAGES))
        if num_full == 0:
            scores = _hide(scores, 0, key, position, num_keys, KEYS_TILE, BOX)
        # Every row sees key 0, so that best is finite from here on.
        best = gl.max(scores, axis=1) * scale_log2
        probability = gl.exp2(scores * scale_log2 - best[:, None])
        weight = gl.sum(probability, axis=1)
        probability = gl.convert_layout(probability.to(dtype), gl.DotOperandLayout(0, sums_layout, 2))
        attended = gl.zeros([_GROUP_ROWS, DIM_TILE], gl.float32, sums_layout)
        for tile in range(1, num_full):
            attended, probability, best, weight = _next_tile(
                attended, probability, best, weight, q_tile, k_tiles, v_tiles, kv_barriers, done + tile, tile, key,
                position, num_keys, scale_log2, False, KEYS_TILE, BOX, NUM_STAGES, scores_layout, sums_layout)
        for tile in range(gl.maximum(1, num_full), num_tiles):
            attended, probability, best, weight = _next_tile(
                attended, probability, best, weight, q_tile, k_tiles, v_tiles, kv_barriers, done + tile, tile, key,
                position, num_keys, scale_log2, True, KEYS_TILE, BOX, NUM_STAGES, scores_layout, sums_layout)
        done += num_tiles
        attended = _weighted_sum(attended, probability, v_tiles, v_ready, done - 1, NUM_STAGES)
        attended = warpgroup_mma_wait(0, [attended])
        mbarrier.arrive(v_free.index((done - 1) % NUM_STAGES))

        attended *= gl.convert_layout(1.0 / weight, gl.SliceLayout(1, sums_layout))[:, None]
        q_tile.store(attended.to(dtype))  # so that rows leave in whole lines
        _store(output, q_tile, first_query, tile_start + FIRST_QUERY, num_queries, kv_head, GROUP, TOKEN_STRIDE,
               HEAD_DIM, HEADS_TILE, DIM_TILE)
        fence_async_shared()  # the next to write there is the copy engine
        mbarrier.arrive(work_free.index(slot))
        drawn += 1
        mbarrier.wait(told.index(drawn % NUM_SLOTS), drawn // NUM_SLOTS & 1)
        tile_start = _read(work, drawn % NUM_SLOTS, 0)


@gluon.jit
def _next_tile(attended, probability, best, weight, q_tile, k_tiles, v_tiles, kv_barriers, step, tile, key, position,
               num_keys, scale_log2, HIDE: gl.constexpr, KEYS_TILE: gl.constexpr, BOX: gl.constexpr,
               NUM_STAGES: gl.constexpr, scores_layout: gl.constexpr, sums_layout: gl.constexpr):
    """Scores and weights of a tile of keys; the values of the tile before it are added up."""
    k_ready, k_free, v_ready, v_free = kv_barriers
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
    attended *= gl.convert_layout(decay, gl.SliceLayout(1, sums_layout))[:, None]
    probability = gl.convert_layout(new_probability.to(probability.dtype), gl.DotOperandLayout(0, sums_layout, 2))
    return attended, probability, new_best, weight


@gluon.jit
def _scores(q_tile, k_tiles, k_ready, step, KEYS_TILE: gl.constexpr, scores_layout: gl.constexpr,
            NUM_STAGES: gl.constexpr):
    mbarrier.wait(k_ready.index(step % NUM_STAGES), step // NUM_STAGES & 1)
    nothing = gl.zeros([_GROUP_ROWS, KEYS_TILE], gl.float32, scores_layout)
    return warpgroup_mma(q_tile, k_tiles.index(step % NUM_STAGES).permute((1, 0)), nothing, use_acc=False,
                         is_async=True)


@gluon.jit
def _weighted_sum(attended, probability, v_tiles, v_ready, step, NUM_STAGES: gl.constexpr):
    mbarrier.wait(v_ready.index(step % NUM_STAGES), step // NUM_STAGES & 1)
    return warpgroup_mma(probability, v_tiles.index(step % NUM_STAGES), attended, is_async=True)


@gluon.jit
def _hide(scores, tile, key, position, num_keys, KEYS_TILE: gl.constexpr, BOX: gl.constexpr):
    """-inf where a key lies after the row's query, or a column of a moved box holds no new key. See _copy_tile."""
    last_key = position - tile * KEYS_TILE
    if (tile + 1) * KEYS_TILE <= num_keys:  # no box is moved: one comparison suffices
        scores = gl.where(key[None, :] <= last_key[:, None], scores, float("-inf"))
    else:
        empty = gl.maximum(key // BOX * BOX + BOX - (num_keys - tile * KEYS_TILE), 0)
        moved_key = gl.where(key % BOX >= empty, key - empty, 1 << 30)
        scores = gl.where(moved_key[None, :] <= last_key[:, None], scores, float("-inf"))
    return scores


@gluon.jit
def _store(output, tile, first_query, first_of_group, num_queries, kv_head, GROUP: gl.constexpr,
           TOKEN_STRIDE: gl.constexpr, HEAD_DIM: gl.constexpr, HEADS_TILE: gl.constexpr, DIM_TILE: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM_TILE, DIM_TILE // 8], [4, 1], [1, 0])
    row = gl.arange(0, _GROUP_ROWS, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, DIM_TILE, layout=gl.SliceLayout(0, layout))
    query = first_of_group + row // HEADS_TILE
    member = row % HEADS_TILE  # which head of the group
    offset = (first_query + query).to(gl.int64) * TOKEN_STRIDE + (kv_head * GROUP + member) * HEAD_DIM
    inside = ((query < num_queries) & (member < GROUP))[:, None] & (column < HEAD_DIM)[None, :]
    gl.store(output + offset[:, None] + column[None, :], tile.load(layout), mask=inside)
