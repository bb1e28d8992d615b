"""Sampling: what penalties and the draw of a decode step take on a GPU, beside reading its logits once.

    python -m benchmarks.sampling --batch_size 256 --vocab_size 92544

Each figure is the median of replays of a CUDA graph that samples several batches in turn, so that no logits are in the
cache before; "peaks" is what a trained model's logits look like: a few tokens stand far above the rest."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from backend.command_line import CONTEXT_SETTINGS, run
from backend.kernels import penalties, sampling
from benchmarks.device_limits import measure_limits, need_gpu
from benchmarks.graph_timing import seconds_each
from benchmarks.record import RESULTS, save

CACHE_BYTES = 100 * 2**20  # twice a GPU's L2
REPEATS = 10  # of the penalties in a graph
NUM_PEAKS = 30
HISTORY = 2048
SPREAD = 1.3  # of the logits of random weights, hidden size 4096
# Name → (temperature, top_k or None, top_p, whether the logits have peaks).
DRAWS = {"greedy": (0.0, None, 1.0, False), "top_k 50, top_p 0.8": (1.0, 50, 0.8, False),
         "top_k 50, top_p 0.8, peaks": (1.0, 50, 0.8, True), "top_p 0.8, peaks": (1.0, None, 0.8, True),
         "top_p 0.8, flat": (1.0, None, 0.8, False), "no filter": (1.0, None, 1.0, False)}


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.sampling --batch_size 1")
@click.option("--batch_size", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--vocab_size", type=click.IntRange(min=NUM_PEAKS), default=92544, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(batch_size: int, vocab_size: int, file: Path | None) -> None:
    """Microseconds of each way to sample."""
    need_gpu()
    floor_us = batch_size * vocab_size * 4 / measure_limits().read_bytes_s * 1e6
    click.echo(f"float32 [{batch_size}, {vocab_size}]; reading it once: {floor_us:.1f} us")
    found = {name: draw_us(batch_size, vocab_size, *options) for name, options in DRAWS.items()}
    found["penalties: none"] = penalties_us(batch_size, vocab_size, 0)
    found[f"penalties: {HISTORY} tokens"] = penalties_us(batch_size, vocab_size, HISTORY)
    for name, spent_us in found.items():
        click.echo(f"{name:28} {spent_us:8.1f} us")
    save(file or RESULTS / f"sampling_{batch_size}.json", {
        "batch_size": batch_size, "vocab_size": vocab_size, "read_once_us": round(floor_us, 1),
        "us": {name: round(spent_us, 1) for name, spent_us in found.items()}})


def draw_us(batch_size: int, vocab_size: int, temperature: float, top_k: int | None, top_p: float,
            has_peaks: bool) -> float:
    """Microseconds of one draw of all rows."""
    batches = logits_batches(batch_size, vocab_size, has_peaks)
    full = torch.full((batch_size,), 1.0, device="cuda")
    rows = torch.arange(batch_size, device="cuda")
    table = torch.zeros(batch_size, dtype=torch.int32, device="cuda")
    arguments = (full * temperature, (full * (top_k or vocab_size)).int(), full * top_p, full * 0, rows * 123_456_789,
                 table, rows)
    return seconds_each([partial(sampling.draw, logits, *arguments) for logits in batches]) * 1e6


def penalties_us(batch_size: int, vocab_size: int, length: int) -> float:
    """Microseconds of the penalties of all rows, each over `length` tokens."""
    logits = logits_batches(batch_size, vocab_size, False)[0]
    rows = torch.arange(batch_size, device="cuda")
    table = torch.randint(vocab_size, (batch_size, HISTORY), dtype=torch.int32, device="cuda")
    counts = torch.zeros_like(logits, dtype=torch.int32)
    lengths, factors = torch.full_like(rows, length).int(), torch.full((batch_size,), 1.0, device="cuda")
    arguments = (table, counts, rows, rows, lengths // 2, lengths, factors, factors * 0, factors * 0)
    return seconds_each([partial(penalties.penalise, logits, *arguments)] * REPEATS) * 1e6


def logits_batches(batch_size: int, vocab_size: int, has_peaks: bool) -> list[Tensor]:
    """As many as overflow the cache."""
    count = max(2, -(-CACHE_BYTES // (batch_size * vocab_size * 4)))
    batches = [torch.randn(batch_size, vocab_size, device="cuda") * SPREAD for _ in range(count)]
    for logits in batches if has_peaks else []:
        peaks = torch.randint(vocab_size, (batch_size, NUM_PEAKS), device="cuda")
        logits.scatter_(1, peaks, 8 + 6 * torch.rand(peaks.shape, device="cuda"))
    return batches


if __name__ == "__main__":
    run(main)
