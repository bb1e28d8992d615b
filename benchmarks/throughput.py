"""Throughput: the engine on fixed work, beside what bytes and arithmetic allow on the same card in the same run.

    python -m benchmarks.throughput --shape m7 --tests a1,a16,b,d1

Tests, greedy, ends ignored, fresh random prompts, wall clock around the whole engine:
  aB  B prompts of 1 token, 2,048 new tokens each          output tokens/s
  b   batch 1 at context 2,048                             ms per token: 129 new tokens less 1, over 128
  c   512 requests at once of 64-1,024 in and 64-512 out   output tokens/s
  d1  one prompt of 8,192 tokens, one new token            prompt tokens/s
  d16 sixteen prompts of 2,048 tokens, one new token each  prompt tokens/s
Floors: bytes of weights and KV over the measured read bandwidth; in prefill, floating-point operations over the
measured matmul rate; in c, the KV's bytes and all operations."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig, ModelConfig
from backend.engine.engine import Engine, start_engine
from backend.memory_plan import DTYPE_BYTES, kv_block_bytes, weights_bytes
from backend.requests import GenerateRequest, SamplingParams
from benchmarks.device_limits import matmul_flops_s, read_bandwidth
from benchmarks.prompts import random_prompt
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, RandomModel

A_NEW = 2048
B_PROMPT, B_NEW = 1984, 129
ROUNDS = 3  # of b and d; a and c are long enough to be told once
SESSION_LEN = 8192 + 64

Work = list[tuple[int, int]]  # (prompt tokens, new tokens) of each request


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


@dataclass(frozen=True, slots=True)
class Bench:
    """An engine with random weights and the limits of its card."""

    engine: Engine
    bandwidth: float
    flops_s: float
    seeds: Iterator[int]

    @property
    def model(self) -> ModelConfig:
        return self.engine.model

    def seconds(self, work: Work) -> float:
        """Wall clock of requests that are all there at the start, every output token counted."""
        begin = time.perf_counter()
        for num_prompt, num_new in work:
            seed = next(self.seeds)
            sampling = SamplingParams(temperature=0, max_new_tokens=num_new, ignore_eos=True)
            prompt = random_prompt(seed, num_prompt, self.model.vocab_size)
            self.engine.add_request(GenerateRequest(str(seed), prompt, sampling))
        count = 0
        while self.engine.has_work:
            count += sum(len(output.token_ids) for output in self.engine.step())
        assert count == sum(num_new for _, num_new in work), count
        return time.perf_counter() - begin

    def kv_token_bytes(self) -> float:
        return kv_block_bytes(self.model, self.engine.config, self.model.dtype) / self.engine.config.block_size

    def step_bytes(self) -> int:
        """Weights that a decode step reads: all but the embedding's other rows."""
        embedding = self.model.vocab_size * self.model.hidden_size * DTYPE_BYTES[self.model.dtype]
        return weights_bytes(self.model, self.model.dtype, 1) - embedding

    def flops(self, work: Work) -> float:
        """Of all matmuls and the causal attention: each new token attends to those before it and itself."""
        model = self.model
        head = model.vocab_size * model.hidden_size
        per_token = 2 * (self.step_bytes() / DTYPE_BYTES[model.dtype] - head)
        attention = 4 * model.num_layers * model.num_heads * model.head_dim
        return sum(per_token * (num_in + num_out - 1) + 2 * head * num_out
                   + attention * (num_in + num_out - 1) * (num_in + num_out) / 2 for num_in, num_out in work)


def decode_from_nothing(bench: Bench, batch_size: int) -> Figure:
    """Test a."""
    work = [(1, A_NEW)] * batch_size
    rate = batch_size * A_NEW / bench.seconds(work)
    num_bytes = A_NEW * bench.step_bytes() + batch_size * A_NEW * (A_NEW + 1) / 2 * bench.kv_token_bytes()
    return Figure(rate, batch_size * A_NEW / (num_bytes / bench.bandwidth), "tokens/s", rate, rate)


def decode_at_context(bench: Bench) -> Figure:
    """Test b."""
    times = [(bench.seconds([(B_PROMPT, B_NEW)]) - bench.seconds([(B_PROMPT, 1)])) / (B_NEW - 1) * 1000
             for _ in range(ROUNDS)]
    num_bytes = bench.step_bytes() + (B_PROMPT + B_NEW / 2) * bench.kv_token_bytes()
    return Figure(statistics.median(times), num_bytes / bench.bandwidth * 1000, "ms", min(times), max(times))


def mixed(bench: Bench) -> Figure:
    """Test c."""
    source = random.Random(20241)
    work = [(source.randint(64, 1024), source.randint(64, 512)) for _ in range(512)]
    num_out = sum(num_new for _, num_new in work)
    rate = num_out / bench.seconds(work)
    kv_bytes = sum(num_new * (num_prompt + num_new / 2) for num_prompt, num_new in work) * bench.kv_token_bytes()
    floor_s = kv_bytes / bench.bandwidth + bench.flops(work) / bench.flops_s
    return Figure(rate, num_out / floor_s, "tokens/s", rate, rate)


def prefill(bench: Bench, batch_size: int, num_prompt: int) -> Figure:
    """Test d."""
    work = [(num_prompt, 1)] * batch_size
    rates = [batch_size * num_prompt / bench.seconds(work) for _ in range(ROUNDS)]
    ceiling = batch_size * num_prompt / (bench.flops(work) / bench.flops_s)
    return Figure(statistics.median(rates), ceiling, "tokens/s", min(rates), max(rates))


TESTS: dict[str, Callable[[Bench], Figure]] = {
    **{f"a{size}": lambda bench, size=size: decode_from_nothing(bench, size) for size in (1, 16, 64, 256)},
    "b": decode_at_context,
    "c": mixed,
    "d1": lambda bench: prefill(bench, 1, 8192),
    "d16": lambda bench: prefill(bench, 16, 2048)}


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.throughput --tests a1,b")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@click.option("--tests", default=",".join(TESTS), show_default=True, help="Which, separated by commas.")
@click.option("--cuda_graphs", default=True, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, tests: str, cuda_graphs: bool, file: Path | None) -> None:
    """Speed of the engine on a GPU, test by test, beside what the card allows."""
    names = tests.split(",")
    if unknown := [name for name in names if name not in TESTS]:
        raise click.ClickException(f"--tests {','.join(unknown)} is not known; use some of {','.join(TESTS)}")
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a CUDA GPU; on a CPU use: python -m benchmarks.cpu")
    limits = read_bandwidth(), matmul_flops_s()
    click.echo(f"read {limits[0] / 1e12:.2f} TB/s, matmul {limits[1] / 1e12:.0f} TFLOP/s")
    config = EngineConfig(session_len=SESSION_LEN, cache_max_entry_count=0.93, cuda_graphs=cuda_graphs)
    begin = time.perf_counter()
    bench = Bench(start_engine(RandomModel(SHAPES[shape], config), config), *limits, itertools.count())
    start_s = time.perf_counter() - begin
    bench.seconds([(B_PROMPT, 8)] * 16)  # compiles the prefill kernels
    figures: dict[str, Figure] = {}
    for name in names:
        figures[name] = figure = TESTS[name](bench)
        click.echo(f"{shape} {name}: {figure.value:,.2f} {figure.unit}, limit {figure.limit:,.2f}, share "
                   f"{figure.share:.0%}, from {figure.least:,.2f} to {figure.greatest:,.2f}")
    memory_gib = torch.cuda.max_memory_reserved() / 2**30
    click.echo(f"{memory_gib:.1f} GiB reserved at most; started in {start_s:.1f} s, random weights")
    save(file or RESULTS / f"throughput_{shape}.json", {
        "shape": shape, "cuda_graphs": cuda_graphs, "read_bandwidth_tb_s": round(limits[0] / 1e12, 3),
        "matmul_tflop_s": round(limits[1] / 1e12, 1), "memory_gib": round(memory_gib, 1),
        "tests": {name: {"value": round(figure.value, 3), "limit": round(figure.limit, 3), "unit": figure.unit,
                         "share": round(figure.share, 3), "least": round(figure.least, 3),
                         "greatest": round(figure.greatest, 3)} for name, figure in figures.items()}})
    bench.engine.close()


if __name__ == "__main__":
    run(main)
