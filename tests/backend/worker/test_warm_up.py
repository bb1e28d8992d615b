"""Warm-up steps run with whatever limits the engine has, and leave nothing behind that a sequence could notice."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from backend.requests import SamplingParams
from backend.steps import StepPlan
from backend.worker.model_runner import RunningStep
from backend.worker.warm_up import counted_kernels, warm_up
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

PROMPT = [3, 14, 15, 92, 65, 35]
SAMPLING = SamplingParams(temperature=1.0, repetition_penalty=1.3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens_are_the_same_with_and_without_it(device: str) -> None:
    found = []
    for is_warm in (True, False):
        driver = StepDriver(tiny_source(device=device, head_dim=64, session_len=64, cache_max_entry_count=32))
        if is_warm:
            warm_up(driver.worker.run, driver.worker.engine)
        found.append([driver.generate(row, PROMPT[row:], 12, SAMPLING, seed=row) for row in range(3)])
    assert found[0] == found[1]


@pytest.mark.parametrize("limits", [{"session_len": 2}, {"max_prefill_tokens": 1}, {"max_batch_size": 1},
                                    {"session_len": 1, "max_batch_size": 1}, {}])
def test_its_steps_keep_to_the_limits_of_the_engine(limits: dict[str, int]) -> None:
    driver = StepDriver(tiny_source(**limits))
    engine, plans = driver.worker.engine, []

    def run(plan: StepPlan) -> RunningStep:
        plans.append(plan)
        return driver.worker.run(plan)

    warm_up(run, engine)
    assert bool(plans) is (engine.session_len > 1)
    for plan in plans:
        assert max(row.num_new for row in plan.rows) <= max(engine.max_prefill_tokens, 1)
        assert max(row.num_cached + row.num_new for row in plan.rows) <= engine.session_len
    longest = min(engine.max_prefill_tokens, engine.session_len - 1)
    assert not plans or max(row.num_new for plan in plans for row in plan.rows) == longest


def test_kernels_are_counted_and_who_listened_before_still_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    knobs = SimpleNamespace(compilation=SimpleNamespace(listener=lambda **compilation: heard.append(compilation)))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=knobs))
    before = knobs.compilation.listener
    with counted_kernels() as counts:
        for cache_hit in (True, False, True):
            knobs.compilation.listener(src=None, cache_hit=cache_hit)
    assert (counts.num_compiled, counts.num_cached) == (1, 2)
    assert [compilation["cache_hit"] for compilation in heard] == [True, False, True]
    assert knobs.compilation.listener is before
