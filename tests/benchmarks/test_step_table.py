"""Step table: rows have blocks of their own, and a cliff is what stands out from its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.demand import Demand
from benchmarks.device_limits import DeviceLimits
from benchmarks.step_table import BATCHES, CONTEXTS, Step, StepDriver, find_cliffs, floor_ms
from tests.benchmarks.tiny import TINY


def even_table() -> dict[tuple[int, int], Step]:
    return {(batch, context): Step(2.0 * batch, 1.0 * batch) for batch in (1, 2, 4) for context in (128, 256, 512)}


def test_a_table_that_grows_as_its_floor_has_no_cliff():
    assert find_cliffs(even_table()) == {}


def test_a_point_over_its_neighbours_trend_is_a_cliff():
    steps = even_table() | {(2, 256): Step(2.0 * 2 * 1.31, 2.0)}
    assert find_cliffs(steps) == {(2, 256): 2.0}


def test_a_point_just_under_the_bound_is_none():
    assert find_cliffs(even_table() | {(2, 256): Step(2.0 * 2 * 1.29, 2.0)}) == {}


def test_neighbours_that_were_not_measured_do_not_count():
    steps = even_table()
    del steps[4, 512]
    assert find_cliffs(steps | {(4, 256): Step(12.0, 4.0)}) == {(4, 256): 2.0}


def test_the_floor_of_a_large_batch_is_arithmetic_and_kv():
    demand, limits = Demand(TINY), DeviceLimits(read_bytes_s=1e12, matmul_flops_s=1e9)
    kv_s = 8 * 100 * demand.kv_token_bytes() / 1e12
    assert floor_ms(demand, limits, 8, 100) == pytest.approx(1000 * (demand.step_flops(8) / 1e9 + kv_s))
    limits = DeviceLimits(read_bytes_s=1e9, matmul_flops_s=1e18)
    assert floor_ms(demand, limits, 1, 0) == pytest.approx(1000 * demand.step_bytes() / 1e9)


@pytest.mark.usefixtures("on_cpu")
def test_every_row_of_a_step_attends_to_blocks_of_its_own():
    driver = StepDriver(TINY, max_batch_size=4, max_context=256)
    assert driver.step_ms(4, 256) > 0
    assert driver.step_ms(2, 128) > 0
    tables = driver.worker.tables
    used = np.concatenate([tables.block_tables[row, :count] for row, count in enumerate(tables.num_blocks)])[:4]
    assert tables.num_blocks[:2].tolist() == [2, 2] and len(set(used.tolist())) == 4


@pytest.mark.usefixtures("on_cpu")
def test_what_does_not_fit_is_left_out():
    driver = StepDriver(TINY, max_batch_size=2, max_context=128)
    assert driver.fits(2, 128) and not driver.fits(4, 128)
    assert driver.kv_token_bytes() == TINY.num_layers * 2 * TINY.num_kv_heads * TINY.head_dim * 4  # float32 on a CPU


def test_the_table_goes_from_1_to_512_and_from_128_to_32768():
    assert (BATCHES[0], BATCHES[-1], CONTEXTS[0], CONTEXTS[-1]) == (1, 512, 128, 32768)
