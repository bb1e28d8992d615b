"""Decode at batch 1 on a GPU: time per token of a 7B-shaped model, beside the floor that its bytes set.

`python -m benchmarks.decode --shape m7`. Time per token is (t(prompt, many new tokens) - t(prompt, 1)) / (many - 1),
wall clock around the whole engine, greedy, fresh prompts. The floor is weights and KV bytes over the read bandwidth
measured in the same run."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import torch

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig
from backend.engine.engine import Engine, start_engine
from backend.memory_plan import kv_block_bytes, weights_bytes
from backend.requests import GenerateRequest, SamplingParams
from benchmarks.device_limits import read_bandwidth
from benchmarks.prompts import random_prompt
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, RandomModel


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.decode --shape g8")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@click.option("--prompt_tokens", default=1984, show_default=True)
@click.option("--new_tokens", default=129, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, prompt_tokens: int, new_tokens: int, rounds: int, file: Path | None) -> None:
    """Milliseconds per token at batch 1."""
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a CUDA GPU; on a CPU use: python -m benchmarks.cpu")
    model = SHAPES[shape]
    config = EngineConfig(session_len=prompt_tokens + new_tokens, max_batch_size=16)
    engine = start_engine(RandomModel(model, config), config)
    seeds = iter(range(1_000_000))
    generate(engine, next(seeds), prompt_tokens, new_tokens)
    per_token_s = []
    for _ in range(rounds):
        long_s = generate(engine, next(seeds), prompt_tokens, new_tokens)
        short_s = generate(engine, next(seeds), prompt_tokens, 1)
        per_token_s.append((long_s - short_s) / (new_tokens - 1))
    ms = statistics.median(per_token_s) * 1000
    kv_bytes = (prompt_tokens + new_tokens / 2) * kv_block_bytes(model, config, model.dtype) / config.block_size
    num_bytes = weights_bytes(model, model.dtype, 1) - model.vocab_size * model.hidden_size * 2 + kv_bytes
    bandwidth = read_bandwidth()
    floor_ms = num_bytes / bandwidth * 1000
    click.echo(f"{shape}, context {prompt_tokens}: {ms:.2f} ms/token = {1000 / ms:.1f} tokens/s; "
               f"floor {floor_ms:.2f} ms ({num_bytes / 1e9:.2f} GB at {bandwidth / 1e12:.2f} TB/s), "
               f"share {floor_ms / ms:.0%}; "
               f"spread {min(per_token_s) * 1000:.2f} to {max(per_token_s) * 1000:.2f} ms")
    save(file or RESULTS / f"decode_{shape}.json", {
        "shape": shape, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds,
        "ms_per_token": round(ms, 3), "floor_ms": round(floor_ms, 3), "share_of_floor": round(floor_ms / ms, 3),
        "read_bandwidth_tb_s": round(bandwidth / 1e12, 3)})
    engine.close()


def generate(engine: Engine, seed: int, num_prompt: int, num_new: int) -> float:
    """Wall-clock seconds of one greedy request of exactly num_new tokens."""
    prompt = random_prompt(seed, num_prompt, engine.model.vocab_size)
    sampling = SamplingParams(temperature=0, max_new_tokens=num_new, ignore_eos=True)
    begin = time.perf_counter()
    engine.add_request(GenerateRequest(str(seed), prompt, sampling))
    count = 0
    while engine.has_work:
        count += sum(len(output.token_ids) for output in engine.step())
    assert count == num_new
    return time.perf_counter() - begin


if __name__ == "__main__":
    run(main)
