"""Step table: the time of a decode step against batch and context, beside its floor, and whether it grows as the work.

    python -m benchmarks.step_table --shape m7

The worker runs plans for rows whose block tables point at allocated blocks of random KV, so that no prompt has to be
computed: to the device a step is what it would be behind the engine, CUDA graph, sampling and copy to the host
included; two steps are in flight, as the engine has them. Only the scheduler's own time is missing.
Floor: the weights' bytes or the linear layers' operations, whichever take longer, and then the KV's bytes.
A point is a cliff where figure / floor is over 1.3 times the median of its neighbours' in the table."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig, ModelConfig
from backend.distributed import TensorParallel
from backend.memory_plan import blocks_of
from backend.requests import SamplingParams
from backend.steps import RowSetup, ScheduledRow, StepPlan
from backend.worker.model_runner import RunningStep
from backend.worker.worker import Worker
from benchmarks.demand import Demand
from benchmarks.device_limits import DeviceLimits, measure_limits, need_gpu
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, RandomModel, weights_option, with_weights

BATCHES = tuple(2**power for power in range(10))  # 1 to 512
CONTEXTS = tuple(2**power for power in range(7, 16))  # 128 to 32,768
WARM_UP_STEPS = 4
NUM_RUNS, STEPS_PER_RUN = 3, 8
STEPS_IN_FLIGHT = 2
CLIFF = 1.3
GREEDY = SamplingParams(temperature=0)

Point = tuple[int, int]  # (batch, context)


@dataclass(frozen=True, slots=True)
class Step:
    """A measured step: milliseconds, and those that it could not do without."""

    ms: float
    floor_ms: float

    @property
    def ratio(self) -> float:
        return self.ms / self.floor_ms


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.step_table --shape g8")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@weights_option
@click.option("--max_batch_size", type=click.IntRange(min=BATCHES[0]), default=BATCHES[-1], show_default=True,
              help=f"From {BATCHES[0]} by powers of 2 up to this.")
@click.option("--max_context", type=click.IntRange(min=CONTEXTS[0]), default=CONTEXTS[-1], show_default=True,
              help=f"From {CONTEXTS[0]} by powers of 2 up to this.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, weights: str, max_batch_size: int, max_context: int, file: Path | None) -> None:
    """Milliseconds of a decode step over batch and context, and every point that is slower than its neighbours."""
    need_gpu()
    wanted = [(batch, context) for batch in BATCHES if batch <= max_batch_size
              for context in CONTEXTS if context <= max_context]
    model = with_weights(SHAPES[shape], weights)
    shape = model.model_name
    limits, demand = measure_limits(), Demand(model)
    click.echo(str(limits))
    driver = StepDriver(model, max_batch_size, max_context)
    steps: dict[Point, Step] = {}
    for batch, context in wanted:
        if driver.fits(batch, context):
            step = Step(driver.step_ms(batch, context), floor_ms(demand, limits, batch, context))
            steps[batch, context] = step
            click.echo(f"batch {batch:4} context {context:6}: {step.ms:8.3f} ms, floor {step.floor_ms:8.3f}, "
                       f"share {step.floor_ms / step.ms:4.0%}")
    cliffs = find_cliffs(steps)
    for (batch, context), trend in cliffs.items():
        click.echo(f"CLIFF: batch {batch}, context {context}: {steps[batch, context].ratio:.2f} times the floor, its "
                   f"neighbours {trend:.2f}")
    click.echo(f"{len(steps)} points, {len(cliffs)} over {CLIFF} times their neighbours' trend")
    save(file or RESULTS / f"step_table_{shape}.json", {
        "shape": shape, **limits.as_json(), "kv_token_bytes": {
            "planned": demand.kv_token_bytes(), "allocated": driver.kv_token_bytes()},
        "steps": [{"batch": batch, "context": context, "ms": round(step.ms, 3), "floor_ms": round(step.floor_ms, 3),
                   "share": round(step.floor_ms / step.ms, 3), "is_cliff": (batch, context) in cliffs}
                  for (batch, context), step in steps.items()]})


class StepDriver:
    """A worker whose KV cache is full of random values, and plans of decode steps for it."""

    def __init__(self, model: ModelConfig, max_batch_size: int, max_context: int) -> None:
        self.config = EngineConfig(session_len=max_context, max_batch_size=max_batch_size, cache_max_entry_count=0.95)
        self.worker = Worker(RandomModel(model, self.config), self.config, TensorParallel())
        self.num_blocks = self.worker.num_blocks()
        self.worker.allocate_kv(self.num_blocks)
        self.kv_cache = self.worker.runner.inputs.kv_cache
        for layer in self.kv_cache:
            layer.k.normal_()
            layer.v.normal_()
        self.worker.tables.token_ids.random_(0, model.vocab_size)  # a row's next token is not the same in every row
        # In no order, as after some hours of work.
        self.blocks = np.random.default_rng(0).permutation(self.num_blocks).tolist()

    def fits(self, batch: int, context: int) -> bool:
        """Whether each row can have blocks of its own."""
        return batch * blocks_of(context, self.config.block_size) <= self.num_blocks

    def step_ms(self, batch: int, context: int) -> float:
        """Of a step in which `batch` rows attend to `context` tokens, the new one included; the median of NUM_RUNS runs
        of several steps. Every step computes the same token again, so that all have one context."""
        in_flight: deque[RunningStep] = deque()
        times = []
        for number, plan in enumerate(self._plans(batch, context)):
            if number >= WARM_UP_STEPS and (number - WARM_UP_STEPS) % STEPS_PER_RUN == 0:
                times.append(time.perf_counter())
            in_flight.append(self.worker.run(plan))
            if len(in_flight) == STEPS_IN_FLIGHT:
                in_flight.popleft().wait()
        for step in in_flight:
            step.wait()
        return statistics.median(end - begin for begin, end in itertools.pairwise(times)) / STEPS_PER_RUN * 1000

    def kv_token_bytes(self) -> int:
        """Bytes of KV cache per token that it has room for."""
        num_bytes = sum(layer.k[0].nbytes + layer.v[0].nbytes for layer in self.kv_cache)  # of one block
        return num_bytes // self.config.block_size

    def _plans(self, batch: int, context: int) -> Iterator[StepPlan]:
        per_row = blocks_of(context, self.config.block_size)
        setups = tuple(
            RowSetup(row, (1,), 1, tuple(self.blocks[row * per_row:(row + 1) * per_row]), GREEDY, (), seed=row)
            for row in range(batch))
        rows = tuple(ScheduledRow(row, context - 1, 1, (), True) for row in range(batch))
        for number in range(WARM_UP_STEPS + NUM_RUNS * STEPS_PER_RUN + 1):
            yield StepPlan(number + 1, () if number else setups, rows)


def floor_ms(demand: Demand, limits: DeviceLimits, batch: int, context: int) -> float:
    """What a decode step cannot do without."""
    linear_s = max(demand.step_bytes() / limits.read_bytes_s, demand.step_flops(batch) / limits.matmul_flops_s)
    return 1000 * (linear_s + batch * context * demand.kv_token_bytes() / limits.read_bytes_s)


def find_cliffs(steps: dict[Point, Step]) -> dict[Point, float]:
    """Points whose ratio to the floor is over CLIFF times the trend, with that trend: the median of the ratios at the
    next smaller and larger batch and context that were measured."""
    batches, contexts = (sorted(set(axis)) for axis in zip(*steps, strict=True))
    cliffs = {}
    for (batch, context), step in steps.items():
        row, column = batches.index(batch), contexts.index(context)
        beside = [(batches[other], context) for other in (row - 1, row + 1) if 0 <= other < len(batches)]
        beside += [(batch, contexts[other]) for other in (column - 1, column + 1) if 0 <= other < len(contexts)]
        ratios = [steps[point].ratio for point in beside if point in steps]
        if ratios and step.ratio > CLIFF * statistics.median(ratios):
            cliffs[batch, context] = statistics.median(ratios)
    return cliffs


if __name__ == "__main__":
    run(main)
