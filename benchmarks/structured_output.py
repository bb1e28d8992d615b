"""Structured output: what it costs a decode step that its rows follow a grammar.

    python -m benchmarks.structured_output --shape g8 --batch_size 64

First the masks alone, which are made on the CPU; then, on a GPU, decode steps with and without. Rows follow one JSON
schema, each on a way of its own, and none comes to its end."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import EngineConfig, ModelConfig
from backend.engine.engine import Engine
from backend.requests import GenerateRequest, SamplingParams
from backend.steps import RowSetup
from backend.text.grammar import json_schema_grammar
from backend.worker.executor import start_executor
from backend.worker.grammar_rows import GrammarRows
from benchmarks.prompts import random_prompt
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, RandomModel, weights_option, with_weights
from benchmarks.stand_in_tokenizer import write_tokenizer
from benchmarks.step import NUM_STEPS, run_steps

NUM_ROUNDS = 7
NUM_MASKS = 60
PERSON = {"type": "object", "properties": {
    "name": {"type": "string", "minLength": 60}, "age": {"type": "integer"}, "mail": {"type": "string"},
    "role": {"enum": ["reader", "writer", "owner"]}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "age", "mail", "role", "tags"], "additionalProperties": False}
GRAMMAR = json_schema_grammar({"type": "array", "items": PERSON, "minItems": 1000})


@click.command(context_settings=CONTEXT_SETTINGS)
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="g8", show_default=True)
@weights_option
@click.option("--batch_size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--context", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, weights: str, batch_size: int, context: int, file: Path | None) -> None:
    """Time of masks, and of decode steps with and without them."""
    model = with_weights(SHAPES[shape], weights)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_dir = write_tokenizer(Path(folder), model.vocab_size)
        mask_ms = {count: masks(tokenizer_dir, model.vocab_size, count) for count in sorted({1, batch_size})}
        for count, spent_ms in mask_ms.items():
            click.echo(f"{model.vocab_size} tokens, {count} rows: masks of a step {spent_ms:.2f} ms on the CPU")
        figures = {"shape": model.model_name, "batch_size": batch_size, "context": context,
                   "mask_ms": {str(count): round(spent_ms, 3) for count, spent_ms in mask_ms.items()}}
        if torch.cuda.is_available():
            free_ms, constrained_ms = steps(model, tokenizer_dir, batch_size, context)
            click.echo(f"{model.model_name}, batch {batch_size}, context {context}: step {free_ms:.3f} ms, "
                       f"with grammars {constrained_ms:.3f} ms: {constrained_ms / free_ms - 1:+.1%}")
            figures |= {"step_ms": round(free_ms, 3), "step_with_grammars_ms": round(constrained_ms, 3)}
        else:
            click.echo("no GPU: no decode steps")
    save(file or RESULTS / f"structured_output_{model.model_name}_{batch_size}.json", figures)


@dataclass
class KnownStep:
    """A step whose tokens are there."""

    rows: tuple[int, ...]
    sampled: Sequence[int]

    def token_ids(self) -> Sequence[int]:
        return self.sampled


def masks(tokenizer_dir: Path, vocab_size: int, num_rows: int) -> float:
    """Median milliseconds of a step's masks, tokens taken included, along random ways through the grammar."""
    grammars = GrammarRows(tokenizer_dir, vocab_size, [2], num_rows, is_pinned=torch.cuda.is_available())
    rows, chance = tuple(range(num_rows)), random.Random(0)
    for row in rows:
        grammars.set_row(RowSetup(row, (1,), 1, (), SamplingParams(grammar=GRAMMAR), (2,), 0))
    mask, spent_s = grammars.mask(rows), []
    for _ in range(NUM_MASKS):
        bits = np.unpackbits(mask.bits.numpy().view(np.uint8), axis=1, bitorder="little")
        grammars.will_sample(KnownStep(rows, [int(chance.choice(np.flatnonzero(line))) for line in bits]))
        begin = time.perf_counter()
        mask = grammars.mask(rows)
        spent_s.append(time.perf_counter() - begin)
    assert not any(mask.ends), "a row came to its end"
    return statistics.median(spent_s) * 1000


def steps(model: ModelConfig, tokenizer_dir: Path, batch_size: int, context: int) -> tuple[float, float]:
    """Milliseconds of a decode step (without, with grammars), the medians of alternating rounds."""
    config = EngineConfig(session_len=context + (2 + NUM_ROUNDS) * NUM_STEPS, max_batch_size=batch_size)
    source = replace(RandomModel(model, config), tokenizer_dir=tokenizer_dir)
    engine = Engine(model, config, start_executor(source, config))
    found: dict[str | None, list[float]] = {None: [], GRAMMAR: []}
    for number in range(NUM_ROUNDS):
        for grammar, times_ms in found.items():
            sampling = SamplingParams(max_new_tokens=3 * NUM_STEPS, ignore_eos=True, grammar=grammar)
            for seed in range(batch_size):
                engine.add_request(GenerateRequest(f"{number} {seed} {grammar is None}", random_prompt(
                    seed, context, model.vocab_size), sampling))
            while engine.scheduler.waiting or any(row.num_uncomputed > 1 for row in engine.scheduler.running):
                engine.step()
            times_ms.append(run_steps(engine))
            while engine.has_work:
                engine.step()
    engine.close()
    return statistics.median(found[None]), statistics.median(found[GRAMMAR])


if __name__ == "__main__":
    run(main)
