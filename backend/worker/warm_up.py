"""Warm-up: a few steps for nobody, so that what is compiled, loaded or tuned at first use is there before a request is.

They run in rows and blocks that belong to no sequence yet: whoever gets these sets the row up and writes each slot of
a block before reading it. Used by worker.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend.config import EngineConfig
from backend.memory_plan import blocks_of
from backend.requests import SamplingParams
from backend.steps import RowSetup, ScheduledRow, StepPlan
from backend.worker.model_runner import RunningStep

SHORT_PROMPT = 16
SAMPLINGS = (SamplingParams(temperature=0.0), SamplingParams(),
             SamplingParams(top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.1,
                            frequency_penalty=0.1, logit_bias=((0, 0.1),), logprobs=1, grammar="start: /.*/"))


def warm_up(run: Callable[[StepPlan], RunningStep], engine: EngineConfig) -> None:
    """Runs the longest prefill that fits, short ones, decodes, and steps of both, with each kind of sampling."""
    for plan in _plans(engine):
        run(plan).wait()


def _plans(engine: EngineConfig) -> Iterator[StepPlan]:
    longest = min(engine.max_prefill_tokens, engine.session_len - 1)  # one more token follows
    if longest < 1:
        return
    short = min(SHORT_PROMPT, longest)
    for number, sampling in enumerate(SAMPLINGS):
        first = _setup(0, short if number else longest, engine, sampling)
        length = len(first.token_ids)
        yield StepPlan(0, (first,), (ScheduledRow(0, 0, length, (), samples=True),))
        yield StepPlan(1, (), (ScheduledRow(0, length, 1, (), samples=True),))
        if engine.max_batch_size > 1:
            second = _setup(1, short, engine, sampling)
            yield StepPlan(2, (second,), (ScheduledRow(0, length, 1, (), samples=True),
                                          ScheduledRow(1, 0, short, (), samples=True)))


def _setup(row: int, num_tokens: int, engine: EngineConfig, sampling: SamplingParams) -> RowSetup:
    """Rows share their blocks, whose content means nothing."""
    blocks = tuple(range(blocks_of(num_tokens + 1, engine.block_size)))
    return RowSetup(row, (0,) * num_tokens, num_tokens, blocks, sampling, (), seed=0)


@dataclass(slots=True)
class KernelCounts:
    """Triton kernels that were compiled, and that were found in its cache on the disk."""

    num_compiled: int = 0
    num_cached: int = 0


@contextmanager
def counted_kernels() -> Iterator[KernelCounts]:
    """Counts what Triton compiles or finds while this is open."""
    from triton import knobs  # Triton is for GPUs

    counts, before = KernelCounts(), knobs.compilation.listener

    def listener(**compilation: Any) -> None:
        if compilation["cache_hit"]:
            counts.num_cached += 1
        else:
            counts.num_compiled += 1
        if before is not None:
            before(**compilation)

    knobs.compilation.listener = listener
    try:
        yield counts
    finally:
        knobs.compilation.listener = before
