"""Workloads: the fixed work on which engines are compared, the figure that each gives, and its floor.

A function of model and test alone: greedy, ends ignored, fresh random prompts as token ids, wall clock around a
blocking run, every output token counted. The prompts are made before the clock starts. Used by throughput.py; what an
engine is, is runners.py's matter."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.demand import Demand, Work
from benchmarks.device_limits import DeviceLimits
from benchmarks.prompts import random_prompt
from benchmarks.runners import Generation, Runner, Settings

A_NEW = 2048
B_PROMPT, B_NEW = 1984, 129
LONG_PROMPT, LONG_NEW = 100_000, 16
USUAL_SETTINGS = Settings(session_len=8192 + 64, max_batch_size=512)
ROUNDS = 3  # of b and d; the others are long enough to be told once


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value in `unit`, its floor or ceiling, and the least and greatest that were measured."""

    value: float
    limit: float
    unit: str
    least: float
    greatest: float

    @property
    def share(self) -> float:
        """Of the limit: 1 is as fast as the card allows."""
        return self.limit / self.value if self.unit == "ms" else self.value / self.limit

    @classmethod
    def of(cls, values: list[float], limit: float, unit: str) -> Figure:
        """The median of repeated measurements."""
        return cls(statistics.median(values), limit, unit, min(values), max(values))


@dataclass(frozen=True, slots=True)
class Bench:
    """An engine at work, what the work asks for, and what the card can do."""

    runner: Runner
    demand: Demand
    limits: DeviceLimits
    seeds: Iterator[int] = field(default_factory=itertools.count)

    def generate(self, work: Work) -> Generation:
        """One blocking run of requests that are all there at the start. AssertionError unless every token came."""
        vocab_size = self.demand.model.vocab_size
        prompts = [random_prompt(next(self.seeds), num_prompt, vocab_size) for num_prompt, _ in work]
        new_tokens = [num_new for _, num_new in work]
        generation = self.runner.generate(prompts, new_tokens)
        assert generation.num_tokens == new_tokens, "the engine gave more or fewer tokens than were asked for"
        return generation

    def seconds(self, work: Work) -> float:
        return self.generate(work).seconds

    def warm_up(self, work: Work) -> None:
        """Whatever an engine does only when it first sees work of this shape is behind it."""
        if self.runner.compiles_per_shape:
            self.seconds(work)

    def read_s(self, num_bytes: float) -> float:
        return num_bytes / self.limits.read_bytes_s

    def compute_s(self, flops: float) -> float:
        return flops / self.limits.matmul_flops_s


def warm_up(bench: Bench, session_len: int) -> None:
    """A long prompt alone, then many of many lengths: compiles what is compiled at first use."""
    bench.seconds([(min(8192, session_len - 1), 1)])
    bench.seconds(random_work(0, 64, prompt=(1, min(1024, session_len // 2)), new=(8, 32)))


def decode_from_nothing(bench: Bench, batch_size: int) -> list[Figure]:
    """Test a: batch_size prompts of 1 token. Floor: bytes of weights, in every step, and KV."""
    work = [(1, A_NEW)] * batch_size
    bench.warm_up(work)
    rate = batch_size * A_NEW / bench.seconds(work)
    floor_s = bench.read_s(A_NEW * bench.demand.step_bytes() + bench.demand.decode_kv_bytes(work))
    return [Figure.of([rate], batch_size * A_NEW / floor_s, "tokens/s")]


def decode_at_context(bench: Bench) -> list[Figure]:
    """Test b: batch 1 at context 2,048, a prompt with many new tokens less one with 1. Floor as in a."""
    work, prompt_alone = [(B_PROMPT, B_NEW)], [(B_PROMPT, 1)]
    bench.warm_up(work)
    bench.warm_up(prompt_alone)
    times = [(bench.seconds(work) - bench.seconds(prompt_alone)) / (B_NEW - 1) * 1000 for _ in range(ROUNDS)]
    num_bytes = bench.demand.step_bytes() + (B_PROMPT + B_NEW / 2) * bench.demand.kv_token_bytes()
    return [Figure.of(times, bench.read_s(num_bytes) * 1000, "ms")]


def mixed(bench: Bench, work: Work) -> list[Figure]:
    """Tests c and short: requests of many lengths at once. Floor: bytes of the KV, and all operations."""
    num_new = sum(new for _, new in work)
    rate = num_new / bench.seconds(work)
    floor_s = bench.read_s(bench.demand.decode_kv_bytes(work)) + bench.compute_s(bench.demand.flops(work))
    return [Figure.of([rate], num_new / floor_s, "tokens/s")]


def prefill(bench: Bench, batch_size: int, num_prompt: int) -> list[Figure]:
    """Test d: batch_size prompts, one new token each. Floor: all operations."""
    work = [(num_prompt, 1)] * batch_size
    bench.warm_up(work)
    rates = [batch_size * num_prompt / bench.seconds(work) for _ in range(ROUNDS)]
    ceiling = batch_size * num_prompt / bench.compute_s(bench.demand.flops(work))
    return [Figure.of(rates, ceiling, "prompt tokens/s")]


def one_long(bench: Bench) -> list[Figure]:
    """Test long: prompt tokens/s up to the first token, then ms per further token, in one run."""
    generation = bench.generate([(LONG_PROMPT, LONG_NEW)])
    assert generation.first_token_s is not None, "this engine does not tell when its first token came"
    decode_ms = (generation.seconds - generation.first_token_s) / (LONG_NEW - 1) * 1000
    num_bytes = bench.demand.step_bytes() + (LONG_PROMPT + LONG_NEW / 2) * bench.demand.kv_token_bytes()
    ceiling = LONG_PROMPT / bench.compute_s(bench.demand.flops([(LONG_PROMPT, 1)]))
    return [Figure.of([LONG_PROMPT / generation.first_token_s], ceiling, "prompt tokens/s"),
            Figure.of([decode_ms], bench.read_s(num_bytes) * 1000, "ms")]


def random_work(seed: int, num_requests: int, prompt: tuple[int, int], new: tuple[int, int]) -> Work:
    """Lengths drawn from the closed ranges `prompt` and `new`."""
    source = random.Random(seed)
    return [(source.randint(*prompt), source.randint(*new)) for _ in range(num_requests)]


@dataclass(frozen=True, slots=True)
class Workload:
    """A test: its name, what it does in a line, and the engine that it needs. Gives one figure per name of `figures`,
    or one under its own."""

    name: str
    summary: str
    measure: Callable[[Bench], list[Figure]]
    settings: Settings = USUAL_SETTINGS
    figures: tuple[str, ...] = ()

    @property
    def figure_names(self) -> tuple[str, ...]:
        return self.figures or (self.name,)


MIXED_WORK = random_work(20241, 512, prompt=(64, 1024), new=(64, 512))
SHORT_WORK = random_work(20242, 10_000, prompt=(16, 64), new=(16, 64))
WORKLOADS = {test.name: test for test in (
    *(Workload(f"a{size}", f"{size} x (1 in, 2,048 out)", lambda bench, size=size: decode_from_nothing(bench, size))
      for size in (1, 16, 64, 256)),
    Workload("b", "batch 1 at context 2,048", decode_at_context),
    Workload("c", "512 x (64-1,024 in, 64-512 out)", lambda bench: mixed(bench, MIXED_WORK)),
    Workload("d1", "1 x (8,192 in, 1 out)", lambda bench: prefill(bench, 1, 8192)),
    Workload("d16", "16 x (2,048 in, 1 out)", lambda bench: prefill(bench, 16, 2048)),
    Workload("short", "10,000 x (16-64 in, 16-64 out)", lambda bench: mixed(bench, SHORT_WORK),
         Settings(session_len=128, max_batch_size=512)),
    Workload("long", "1 x (100,000 in, 16 out)", one_long, Settings(session_len=LONG_PROMPT + 64, max_batch_size=8),
         figures=("long", "long_decode")))}
DEFAULT_TESTS = ("a1", "a16", "a64", "a256", "b", "c", "d1", "d16")
