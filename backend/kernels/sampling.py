"""Sampling in Triton: temperature, top_k, top_p, min_p and the draw of every row in one launch, without sorting.

A program owns one row. It reads it once for the maximum of each of SLOTS columns, logits that are SLOTS apart; greedy
rows end there. The maxima alone then bound what the filters keep: k columns whose maximum is at least x hold k logits
that are, so top_k cuts at x or above. What is left lies in a few columns; they are copied, and from here on only they
are read. Where they do not fit into ROOM (a flat distribution), or no bound is found, the whole row is.

top_k's border is then searched by value. top_p needs none: a token is drawn as if there were no top_p, and what is
likelier than it is weighed; if that is top_p or more, the draw is repeated among what is likelier. That ends with the
token that a draw among the kept ones would have given, after 1 + ln(1 / top_p) attempts on average (refusal as in
FlashInfer, Ye et al., 2025).

On an H200, in a CUDA graph, float32 [256, 92544] (read once in 21 us): greedy 33 us, top_k 50 with top_p 0.8 96 us,
top_p 0.8 alone 132 us, or 393 us where it keeps 30,000 tokens, no filter 166 us (benchmarks/sampling.py).
Used by worker/sampler.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels.sampling_reference import FACTOR_1, FACTOR_2, HIGHEST, INCREMENT

# The best on an H200 for one row. With 8 warps, 2048 slots and tiles of 1024, 256 rows would take up to a quarter less,
# which is less of their step than what one row would lose is of its own.
SLOTS = 4096
ROOM = 8192  # logits for which there is room beside the row
TILE = 2048  # logits that a search reads at a time
PARTS = 4  # in which a reading cuts a search's range
NUM_WARPS = 16
_INCREMENT, _FACTOR_1, _FACTOR_2 = tl.constexpr(INCREMENT), tl.constexpr(FACTOR_1), tl.constexpr(FACTOR_2)
_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-3.4e38)  # below it there is only -inf
_HIGHEST = tl.constexpr(HIGHEST)
_NOTHING = tl.constexpr(float("-inf"))
_ABOVE_ALL = tl.constexpr(1e-30)  # values are less their maximum, so at most 0


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor,
         token_table: Tensor, slots: Tensor) -> Tensor:
    """See sampling_reference.draw. A row of -inf or NaN alone gives token 0."""
    assert logits.is_contiguous(), logits.stride()
    num_rows, vocab_size = logits.shape
    num_slots = min(SLOTS, triton.next_power_of_2(vocab_size))
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    maxima = torch.empty((num_rows, num_slots), dtype=torch.float32, device=logits.device)
    columns = torch.empty((num_rows, num_slots), dtype=torch.int32, device=logits.device)
    copied = torch.empty((num_rows, ROOM), dtype=torch.float32, device=logits.device)
    _draw_kernel[(num_rows,)](
        logits, temperature, top_k, top_p, min_p, keys, token_table, slots, token_ids, maxima, columns, copied,
        VOCAB_SIZE=vocab_size, SLOTS=num_slots, ROOM=ROOM, TILE=min(TILE, num_slots), PARTS=PARTS,
        num_warps=NUM_WARPS)
    return token_ids


@triton.jit
def _draw_kernel(logits, temperature, top_k, top_p, min_p, keys, token_table, slots, token_ids, maxima, columns, copied,
                 VOCAB_SIZE: tl.constexpr, SLOTS: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr,
                 PARTS: tl.constexpr):
    COLUMN: tl.constexpr = (VOCAB_SIZE + SLOTS - 1) // SLOTS
    row = tl.program_id(0).to(tl.int64)
    values = logits + row * VOCAB_SIZE
    slot = tl.arange(0, SLOTS)
    slot_best = tl.full([SLOTS], float("-inf"), tl.float32)
    slot_id = slot
    for start in range(0, VOCAB_SIZE, SLOTS):
        ids = start + slot
        value = _logits(values, ids, ids < VOCAB_SIZE)
        is_better = value > slot_best  # so the first of equals stays, and NaN never enters
        slot_best = tl.where(is_better, value, slot_best)
        slot_id = tl.where(is_better, ids, slot_id)
    best = tl.max(slot_best, axis=0)
    token_id = tl.min(tl.where(slot_best == best, slot_id, VOCAB_SIZE), axis=0)
    row_temperature = tl.load(temperature + row)
    if (row_temperature > 0) & (best > float("-inf")):
        scale = _LOG2_E / row_temperature
        row_top_k, row_top_p = tl.load(top_k + row), tl.load(top_p + row)
        has_top_k, has_top_p = row_top_k < VOCAB_SIZE, row_top_p < 1.0
        # Where the values are among which the filters cut, and how many: the row itself, or columns copied from it.
        source, count, is_copied = values, VOCAB_SIZE, False
        row_columns = columns + row * SLOTS
        floor = _LOWEST
        target = 0.0
        if has_top_k | has_top_p:
            weight_scale, target = 0.0, row_top_k.to(tl.float32)
            if not has_top_k:
                weight_scale = scale
                target = row_top_p * _weight(values, VOCAB_SIZE, best, scale, _LOWEST, _NOTHING, TILE)
            weights = tl.exp2(tl.maximum(slot_best - best, _LOWEST) * weight_scale)
            if tl.sum(tl.where(slot_best > float("-inf"), weights, 0.0), axis=0) >= target:
                row_maxima = maxima + row * SLOTS
                tl.store(row_maxima + slot, slot_best)
                tl.debug_barrier()
                floor = tl.maximum(tl.min(slot_best, axis=0) - best, _LOWEST)
                floor = _search(row_maxima, SLOTS, best, weight_scale, target, floor, TILE, PARTS)
                is_left = slot_best - best >= floor
                num_left = COLUMN * tl.sum(is_left.to(tl.int32), axis=0)
                if num_left <= ROOM:
                    tl.store(row_columns + tl.cumsum(is_left.to(tl.int32), axis=0) - 1, slot, mask=is_left)
                    tl.debug_barrier()
                    source, count, is_copied = copied + row * ROOM, num_left, True
                    _copy_columns(values, source, count, row_columns, COLUMN, VOCAB_SIZE, SLOTS, TILE)
            if has_top_k:
                floor = _search(source, count, best, 0.0, target, floor, TILE, PARTS)
                if has_top_p:
                    target = row_top_p * _weight(source, count, best, scale, floor, _NOTHING, TILE)
        min_p_floor, key = tl.log(tl.load(min_p + row)), tl.load(keys + row)
        refused = _NOTHING
        is_open = True
        while is_open:
            token_id = _draw_above(source, count, row_columns, is_copied, best, row_temperature, floor, refused,
                                   min_p_floor, key, COLUMN, VOCAB_SIZE, SLOTS, TILE)
            is_open = False
            if has_top_p:
                refused = _logits(values, token_id, True) - best
                is_open = (refused < 0) & (_weight(source, count, best, scale, floor, refused, TILE) >= target)
    tl.store(token_ids + row, token_id.to(tl.int64))
    tl.store(token_table + tl.load(slots + row), token_id)


@triton.jit
def _logits(values, ids, is_there):
    """What is read of a row: -inf beyond its end, and nothing infinite above, so that the maximum can be taken away
    from all of it. NaN stays NaN, which no comparison lets in; a minimum would make it the largest."""
    value = tl.load(values + ids, mask=is_there, other=float("-inf"))
    return tl.where(value > _HIGHEST, _HIGHEST, value)


@triton.jit
def _copy_columns(values, copied, count, columns, COLUMN: tl.constexpr, VOCAB_SIZE: tl.constexpr, SLOTS: tl.constexpr,
                  TILE: tl.constexpr):
    """Column after column; -inf where the last row of all is not full."""
    for start in range(0, count, TILE):
        index = start + tl.arange(0, TILE)
        ids = _id_in_columns(columns, index, index < count, COLUMN, SLOTS)
        value = _logits(values, ids, (index < count) & (ids < VOCAB_SIZE))
        tl.store(copied + index, value, mask=index < count)
    tl.debug_barrier()


@triton.jit
def _draw_above(values, count, columns, is_copied, best, temperature, floor, refused, min_p_floor, key,
                COLUMN: tl.constexpr, VOCAB_SIZE: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr):
    """The token with the largest noisy logit of those with value - best >= floor and > refused that min_p keeps."""
    token_id = VOCAB_SIZE
    largest = float("-inf")
    for start in range(0, count, TILE):
        index = start + tl.arange(0, TILE)
        shifted = _logits(values, index, index < count) - best
        scaled = tl.div_rn(shifted, temperature)
        ids = index
        if is_copied:
            ids = _id_in_columns(columns, index, index < count, COLUMN, SLOTS)
        hashed = _hash(key, ids)
        is_kept = (shifted >= floor) & (shifted > refused) & (scaled >= min_p_floor)
        can_win = is_kept & (scaled + _noise_bound(hashed) >= largest)
        if tl.max(can_win.to(tl.int32), axis=0) > 0:  # seldom, once a good one is found
            noisy = tl.where(is_kept, scaled + _gumbel_noise(hashed), float("-inf"))
            tile_largest = tl.max(noisy, axis=0)
            tile_id = tl.min(tl.where(noisy == tile_largest, ids, VOCAB_SIZE), axis=0)
            is_first = (tile_largest > largest) | ((tile_largest == largest) & (tile_id < token_id))
            token_id = tl.where(is_first, tile_id, token_id)
            largest = tl.maximum(largest, tile_largest)
    return token_id


@triton.jit
def _id_in_columns(columns, index, is_there, COLUMN: tl.constexpr, SLOTS: tl.constexpr):
    """The token ids of copied logits: column after column."""
    return tl.load(columns + index // COLUMN, mask=is_there, other=0) + index % COLUMN * SLOTS


@triton.jit
def _weight(values, count, best, scale, floor, refused, TILE: tl.constexpr):
    """The sum of 2^(scale · (value - best)) over values with value - best >= floor and > refused."""
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, count, TILE):
        index = start + tl.arange(0, TILE)
        shifted = _logits(values, index, index < count) - best
        total += tl.where((shifted >= floor) & (shifted > refused), tl.exp2(shifted * scale), 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _search(values, count, best, scale, target, low, TILE: tl.constexpr, PARTS: tl.constexpr):
    """The largest x for which the values with value - best >= x weigh target or more; a value weighs
    2^(scale · (value - best)), so that a scale of 0 counts. x may lie below the value that it stands for, with nothing
    between. Not less than low: where even that is too high, low.

    Keeps [low, high) with x in it, and cuts it in PARTS by one reading, until it holds a single value."""
    high = _ABOVE_ALL
    is_open = True
    while is_open:
        cuts, totals = (), ()  # Triton's tuples grow by + only
        for part in tl.static_range(1, PARTS):
            cuts = cuts + (low + (high - low) * (part / PARTS),)  # noqa: RUF005
            totals = totals + (tl.zeros([TILE], tl.float32),)  # noqa: RUF005
        least = tl.full([TILE], float("inf"), tl.float32)
        most = tl.full([TILE], float("-inf"), tl.float32)
        for start in range(0, count, TILE):
            index = start + tl.arange(0, TILE)
            shifted = _logits(values, index, index < count) - best
            weight = tl.exp2(shifted * scale)
            least = tl.minimum(least, tl.where(shifted >= low, shifted, float("inf")))
            most = tl.maximum(most, tl.where(shifted < high, shifted, float("-inf")))
            sums = ()
            for part in tl.static_range(PARTS - 1):
                sums = sums + (totals[part] + tl.where(shifted >= cuts[part], weight, 0.0),)  # noqa: RUF005
            totals = sums
        smallest, largest = tl.min(least, axis=0), tl.max(most, axis=0)
        is_open = smallest < largest
        low = tl.maximum(low, tl.minimum(smallest, high))
        for part in tl.static_range(PARTS - 1):
            reaches = tl.sum(totals[part], axis=0) >= target
            low = tl.where(reaches, tl.maximum(low, cuts[part]), low)
            high = tl.where(reaches, high, tl.minimum(high, cuts[part]))
    return tl.minimum(low, 0.0)  # the maximum is always a value, also where the target is nothing


@triton.jit
def _hash(key, ids):
    """The 53 random bits of each token id: see sampling_reference.gumbel_noise."""
    mixed = key.to(tl.uint64) + ids.to(tl.uint64) * _INCREMENT
    mixed = (mixed ^ (mixed >> 30)) * _FACTOR_1
    mixed = (mixed ^ (mixed >> 27)) * _FACTOR_2
    return (mixed ^ (mixed >> 31)) >> 11


@triton.jit
def _gumbel_noise(hashed):
    """See sampling_reference.gumbel_noise."""
    uniform = tl.minimum((hashed.to(tl.float32) + 1.0) * 2.0**-53, 1.0 - 2.0**-24)
    # -log(1 - uniform): the rounding of 1 - uniform is undone by what it took away, as in Goldberg's log1p (1991).
    complement = 1.0 - uniform
    taken = 1.0 - complement
    exponential = tl.where(taken == 0.0, uniform, -tl.log(complement) * (uniform / taken))
    return -tl.log(exponential)


@triton.jit
def _noise_bound(hashed):
    """Not less than the noise, without its logarithms: -log(uniform), of which a float's bits are nearly a multiple.

    An exponent e and a fraction f of 1 stand for 2^e (1 + f) >= 2^(e + f)."""
    bits = ((hashed >> 21).to(tl.uint32).to(tl.float32) * 2.0**-32 + 2.0**-60).to(tl.int32, bitcast=True)
    return (127.01 - bits.to(tl.float32) * 2.0**-23) * _LN_2
