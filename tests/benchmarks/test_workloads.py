"""Workloads: the work is what it has to be, and figures follow from the times that an engine takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from benchmarks.demand import Demand
from benchmarks.device_limits import DeviceLimits
from benchmarks.prompts import random_prompt
from benchmarks.runners import Generation
from benchmarks.workloads import LONG_PROMPT, MIXED_WORK, SHORT_WORK, WORKLOADS, Bench, Figure, prefill
from tests.benchmarks.tiny import TINY

LIMITS = DeviceLimits(read_bytes_s=1e9, matmul_flops_s=1e12)


@dataclass
class FakeRunner:
    """Takes a millisecond per prompt token and two per new one; `missing` tokens are never given."""

    compiles_per_shape: bool = False
    missing: int = 0
    tests: tuple[str, ...] | None = None
    prompts: list[tuple[int, ...]] = field(default_factory=list)

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        self.prompts += prompts
        prefill_s = sum(map(len, prompts)) / 1000
        counts = [count - self.missing for count in new_tokens]
        return Generation(counts, prefill_s + 2 * sum(new_tokens) / 1000, prefill_s + 0.002)

    def close(self) -> None:
        pass


def bench(**options: object) -> Bench:
    return Bench(FakeRunner(**options), Demand(TINY), LIMITS)


def test_mixed_work_is_the_published_one():
    assert len(MIXED_WORK) == 512
    assert [sum(axis) for axis in zip(*MIXED_WORK, strict=True)] == [274_060, 148_355]


def test_short_work_is_ten_thousand_requests_of_at_most_64_and_64_tokens():
    assert len(SHORT_WORK) == 10_000
    assert {min(axis) for axis in zip(*SHORT_WORK, strict=True)} == {16}
    assert {max(axis) for axis in zip(*SHORT_WORK, strict=True)} == {64}


def test_every_test_fits_the_engine_it_asks_for():
    assert WORKLOADS["short"].settings.session_len >= 128
    assert WORKLOADS["long"].settings.session_len >= LONG_PROMPT + 16
    assert WORKLOADS["d1"].settings.session_len >= 8193


def test_a_missing_token_is_no_figure():
    with pytest.raises(AssertionError, match="more or fewer"):
        bench(missing=1).seconds([(4, 3)])


def test_prompts_are_fresh_and_repeatable():
    one, other = bench(), bench()
    for each in (one, other):
        each.seconds([(8, 1), (8, 1)])
    assert one.runner.prompts == other.runner.prompts == [random_prompt(seed, 8, TINY.vocab_size) for seed in (0, 1)]
    assert one.runner.prompts[0] != one.runner.prompts[1]


def test_decode_at_context_leaves_the_prompt_out():
    (figure,) = WORKLOADS["b"].measure(bench())
    assert (figure.value, figure.unit) == (pytest.approx(2.0), "ms")


def test_a_long_prompt_gives_its_rate_and_the_time_of_a_token_after_it():
    prompt, decode = WORKLOADS["long"].measure(bench())
    assert prompt.value == pytest.approx(1000, rel=1e-3)
    assert decode.value == pytest.approx(2.0)
    assert WORKLOADS["long"].figure_names == ("long", "long_decode")


def test_prefill_tells_prompt_tokens_per_second():
    (figure,) = prefill(bench(), 2, 100)
    assert figure.value == pytest.approx(2 * 100 / (0.2 + 0.004))


def test_an_engine_that_compiles_per_shape_does_the_work_once_before():
    one = bench(compiles_per_shape=True)
    prefill(one, 2, 100)
    assert len(one.runner.prompts) == 2 * (1 + 3)


def test_share_of_the_limit_is_one_at_best_for_times_and_rates():
    assert Figure(4.0, 3.0, "ms", 4.0, 4.0).share == 0.75
    assert Figure(300.0, 400.0, "tokens/s", 300.0, 300.0).share == 0.75
