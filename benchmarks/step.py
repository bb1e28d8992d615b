"""Step: one decode step on a GPU taken apart. How long each kernel runs, how often, how long none does, and the host's
time.

    python -m benchmarks.step --shape m7 --batch_size 1

The trace is torch.profiler's, over steps whose prompts are in the KV cache; tracing makes steps a little longer, so the
figure without it is measured in the same run."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch.profiler import ProfilerActivity, profile

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig
from backend.engine.engine import Engine
from backend.memory_plan import blocks_of
from backend.requests import GenerateRequest, SamplingParams
from backend.steps import StepPlan, StepResult
from backend.worker.executor import Executor, StepHandle, start_executor
from benchmarks.device_limits import need_gpu
from benchmarks.prompts import random_prompt
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, RandomModel, weights_option, with_weights

NUM_STEPS = 20
NAME_LENGTH = 60


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.step --batch_size 64")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@weights_option
@click.option("--batch_size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--context", type=click.IntRange(min=1), default=1984, show_default=True)
@click.option("--cuda_graphs", default=True, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, weights: str, batch_size: int, context: int, cuda_graphs: bool, file: Path | None) -> None:
    """Kernel time, gaps and host time of a decode step."""
    need_gpu()
    model = with_weights(SHAPES[shape], weights)
    shape = model.model_name
    config = EngineConfig(session_len=context + 6 * NUM_STEPS, max_batch_size=batch_size, cuda_graphs=cuda_graphs)
    executor = TimedExecutor(start_executor(RandomModel(model, config), config))
    largest = executor.num_blocks // blocks_of(config.session_len, config.block_size)
    if batch_size > largest:
        executor.close()
        raise click.UsageError(f"the KV cache holds {largest} rows of {config.session_len} tokens, not {batch_size}; "
                               f"use --batch_size {largest} or less, or a smaller --context")
    engine = Engine(model, config, executor)
    sampling = SamplingParams(temperature=0, max_new_tokens=6 * NUM_STEPS, ignore_eos=True)
    for seed in range(batch_size):
        engine.add_request(GenerateRequest(str(seed), random_prompt(seed, context, model.vocab_size), sampling))
    while len(engine.scheduler.running) < batch_size or any(row.num_uncomputed > 1 for row in engine.scheduler.running):
        engine.step()
    run_steps(engine)
    executor.waited_s = 0.0
    step_ms = run_steps(engine)
    host_ms = step_ms - executor.waited_s / NUM_STEPS * 1000
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run_steps(engine)
    kernels = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    time_us, count = defaultdict(float), defaultdict(int)
    for event in kernels:
        time_us[event.name] += event.time_range.elapsed_us() / NUM_STEPS
        count[event.name] += 1
    busy_us, idle_us = busy_and_idle([(event.time_range.start, event.time_range.end) for event in kernels])
    busy_ms, idle_ms = busy_us / NUM_STEPS / 1000, idle_us / NUM_STEPS / 1000
    click.echo(f"{shape}, batch {batch_size}, context {context}: step {step_ms:.3f} ms, host {host_ms:.3f} ms; traced: "
               f"{len(kernels) / NUM_STEPS:.0f} kernels and copies, some running for {busy_ms:.3f} ms, "
               f"none for {idle_ms:.3f} ms")
    table = sorted(time_us.items(), key=lambda entry: -entry[1])
    for name, spent_us in table:
        click.echo(f"{spent_us:9.1f} us {count[name] / NUM_STEPS:6.1f} x {spent_us * NUM_STEPS / count[name]:7.2f} us  "
                   f"{name[:NAME_LENGTH]}")
    save(file or RESULTS / f"step_{shape}_{batch_size}.json", {
        "shape": shape, "batch_size": batch_size, "context": context, "cuda_graphs": cuda_graphs,
        "step_ms": round(step_ms, 3), "host_ms": round(host_ms, 3), "busy_ms": round(busy_ms, 3),
        "idle_ms": round(idle_ms, 3),
        "kernels": {name[:NAME_LENGTH]: {"us": round(spent_us, 1), "launches": round(count[name] / NUM_STEPS, 1)}
                    for name, spent_us in table}})
    engine.close()


@dataclass
class TimedExecutor:
    """An executor that knows for how many seconds the host has waited for its steps."""

    executor: Executor
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        self.num_blocks, self.max_in_flight = self.executor.num_blocks, self.executor.max_in_flight

    def launch(self, plan: StepPlan) -> TimedStep:
        return TimedStep(self, self.executor.launch(plan))

    def close(self) -> None:
        self.executor.close()


@dataclass(frozen=True)
class TimedStep:
    executor: TimedExecutor
    step: StepHandle

    def wait(self) -> StepResult:
        begin = time.perf_counter()
        result = self.step.wait()
        self.executor.waited_s += time.perf_counter() - begin
        return result


def busy_and_idle(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """How long at least one of the (begin, end) lasts, and how long none does between the first and the last. Kernels
    overlap where the next one starts while the last one drains, so their sum would say too much."""
    busy = idle = 0.0
    reached = min(begin for begin, _ in intervals)
    for begin, end in sorted(intervals):
        idle += max(0.0, begin - reached)
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy, idle


def run_steps(engine: Engine) -> float:
    """Milliseconds per step over NUM_STEPS steps."""
    begin = time.perf_counter()
    for _ in range(NUM_STEPS):
        engine.step()
    return (time.perf_counter() - begin) / NUM_STEPS * 1000


if __name__ == "__main__":
    run(main)
