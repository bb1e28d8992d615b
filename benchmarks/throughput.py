"""Throughput: an engine on fixed work, beside what bytes and arithmetic allow on the same card in the same run.

    python -m benchmarks.throughput --shape m7 --tests a1,a16,b,d1
    python -m benchmarks.throughput --shape m7 --weights awq
    python -m benchmarks.throughput --shape m7 --engine transformers

Tests, greedy, ends ignored, fresh random prompts, wall clock around the whole engine:
  aB     B prompts of 1 token, 2,048 new tokens each            output tokens/s
  b      batch 1 at context 2,048                               ms per token: 129 new tokens less 1, over 128
  c      512 requests at once of 64-1,024 in and 64-512 out     output tokens/s
  d1     one prompt of 8,192 tokens, one new token              prompt tokens/s
  d16    sixteen prompts of 2,048 tokens, one new token each    prompt tokens/s
  short  10,000 requests at once of 16-64 in and 16-64 out      output tokens/s
  long   one prompt of 100,000 tokens, 16 new tokens            prompt tokens/s, then ms per token
Floors: a, b: bytes of weights and KV over the measured read bandwidth; d, long: floating-point operations over the
measured matmul rate; c, short: the KV's bytes and all operations. Median of three where the test is short."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig, ModelConfig
from backend.kv_format import QUANT_POLICIES
from backend.model_source import ModelSource, open_model
from benchmarks.checkpoint import ensure_checkpoint
from benchmarks.demand import Demand
from benchmarks.device_limits import device_memory_gib, measure_limits, need_gpu
from benchmarks.peers import start_peer
from benchmarks.record import RESULTS, save
from benchmarks.runners import MillraceRunner, Runner, Settings
from benchmarks.shapes import SHAPES, RandomModel, weights_option, with_weights
from benchmarks.workloads import DEFAULT_TESTS, WORKLOADS, Bench, Figure, Workload, warm_up

ENGINES = ("millrace", "transformers", "vllm", "lmdeploy")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: an engine by name, and a model.

    shape           of SHAPES, or the path of a workspace or Hugging Face folder
    weights         of WEIGHTS, how a shape's are stored
    checkpoint_dir  where a folder with random weights is made for engines that read files"""

    engine: str
    shape: str
    weights: str
    checkpoint_dir: Path
    cuda_graphs: bool

    @property
    def source(self) -> ModelSource:
        model = self._random_model
        return RandomModel(model, EngineConfig(session_len=1)) if model else open_model(self.shape)

    @property
    def name(self) -> str:
        """For files: m7, m7_awq, or the folder's name."""
        model = self._random_model
        return model.model_name if model else Path(self.shape).name

    @contextmanager
    def start(self, settings: Settings) -> Iterator[Runner]:
        """The engine, loaded."""
        if self.engine == "millrace":
            runner: Runner = MillraceRunner(self.source, settings, self.cuda_graphs)
        else:
            runner = start_peer(self.engine, self._folder(), settings)
        try:
            yield runner
        finally:
            runner.close()

    def _folder(self) -> Path:
        model = self._random_model
        return ensure_checkpoint(model, self.checkpoint_dir.expanduser() / self.name) if model else Path(self.shape)

    @property
    def _random_model(self) -> ModelConfig | None:
        return with_weights(SHAPES[self.shape], self.weights) if self.shape in SHAPES else None


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.throughput --tests a1,b")
@click.option("--shape", default="m7", show_default=True,
              help=f"{', '.join(SHAPES)} with random weights, or the path of a workspace or Hugging Face folder.")
@weights_option
@click.option("--tests", default=",".join(DEFAULT_TESTS), show_default=True,
              help=f"Which of {', '.join(WORKLOADS)}, separated by commas.")
@click.option("--engine", type=click.Choice(ENGINES), default="millrace", show_default=True)
@click.option("--quant_policy", type=int, default=0, show_default=True,
              help="KV cache: 0 as the model, 8 or 4 bits, where the engine can.")
@click.option("--cuda_graphs", default=True, show_default=True, help="Of Millrace.")
@click.option("--checkpoint_dir", type=click.Path(path_type=Path), default="~/.cache/millrace/bench",
              show_default=True, help="Where a checkpoint with random weights is kept for the other engines.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, weights: str, tests: str, engine: str, quant_policy: int, cuda_graphs: bool, checkpoint_dir: Path,
         file: Path | None) -> None:
    """Speed of an engine on a GPU, test by test, beside what the card allows."""
    names = tests.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise click.ClickException(f"--tests {','.join(unknown)} is not known; use some of {','.join(WORKLOADS)}")
    if weights != "bf16" and shape not in SHAPES:
        raise click.ClickException(f"--weights {weights} is for {', '.join(SHAPES)}; {shape} has its own, leave it out")
    if quant_policy not in QUANT_POLICIES:
        raise click.ClickException(f"--quant_policy {quant_policy} is no KV cache format; use 0, 8 or 4")
    need_gpu()
    subject = Subject(engine, shape, weights, checkpoint_dir, cuda_graphs)
    demand, limits = Demand(subject.source.model, quant_policy), measure_limits()
    click.echo(str(limits))
    result = {"engine": engine, "shape": subject.name, "quant_policy": quant_policy, "cuda_graphs": cuda_graphs,
              **limits.as_json(), "memory_gib": 0.0, "tests": {}}
    file = file or RESULTS / default_name(result)
    for settings, group in itertools.groupby((WORKLOADS[name] for name in names), lambda workload: workload.settings):
        begin = time.perf_counter()
        with subject.start(dataclasses.replace(settings, quant_policy=quant_policy)) as runner:
            bench = Bench(runner, demand, limits)
            if not runner.compiles_per_shape:
                warm_up(bench, settings.session_len)
            click.echo(f"{engine} started and warm in {time.perf_counter() - begin:.1f} s, session_len "
                       f"{settings.session_len:,}, max_batch_size {settings.max_batch_size}")
            for workload in group:
                if runner.tests is not None and workload.name not in runner.tests:
                    click.echo(f"{workload.name}: skipped, {engine} cannot do it in reasonable time")
                    continue
                result["tests"] |= measure(workload, bench)
                result["memory_gib"] = round(max(result["memory_gib"], device_memory_gib()), 1)
                save(file, result)  # after each test: an error in a later one costs only that one
    click.echo(f"{result['memory_gib']:.1f} GiB of the device's memory in use at most")


def measure(workload: Workload, bench: Bench) -> dict[str, dict[str, object]]:
    """Runs a test, prints its figures, and returns them as they are kept."""
    kept = {}
    for name, figure in zip(workload.figure_names, workload.measure(bench), strict=True):
        click.echo(f"{name}: {figure.value:,.2f} {figure.unit}, limit {figure.limit:,.2f}, share {figure.share:.0%}, "
                   f"from {figure.least:,.2f} to {figure.greatest:,.2f}, memory {device_memory_gib():.1f} GiB")
        kept[name] = as_json(figure)
    return kept


def as_json(figure: Figure) -> dict[str, object]:
    """A figure as it is kept, to a precision that its spread supports."""
    return {"value": round(figure.value, 3), "limit": round(figure.limit, 3), "unit": figure.unit,
            "share": round(figure.share, 3), "least": round(figure.least, 3), "greatest": round(figure.greatest, 3)}


def default_name(result: dict[str, object]) -> str:
    """throughput_m7.json or throughput_m7_awq.json; with the engine where it is another's, and the KV format where that
    is quantised."""
    engine = f"_{result['engine']}" if result["engine"] != "millrace" else ""
    kv_format = f"_kv{result['quant_policy']}" if result["quant_policy"] else ""
    return f"throughput_{result['shape']}{engine}{kv_format}.json"


if __name__ == "__main__":
    run(main)
