"""Plan: what fits on a card, before a weight is read or a card is bought. `python -m backend.plan MODEL`.

The memory plan of the engine (memory_plan.py) for every choice that saves memory: weights in 4 bits, KV in 8 or 4, and
the share of the card that the KV cache is given. Needs no GPU, no weights and no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import GROUP_SIZES, EngineConfig, ModelConfig, QuantConfig, check_engine
from backend.errors import CapacityError, ConfigError
from backend.kv_format import KvFormat, kv_format
from backend.memory_plan import GIB, MemoryPlan, plan_memory
from backend.model_outline import KNOWN_MODELS, read_outline
from backend.workspace import PAST_KV_SCALE

QUANT_POLICIES = (0, 8, 4)  # the rows, from most to fewest bytes
KV_NAMES = {KvFormat.INT8: "int8", KvFormat.INT4: "int4", KvFormat.CALIBRATED_INT8: "int8, calibrated"}
CACHE_SHARES = (0.8, 0.4)
DEFAULT_SESSION_LEN = 8192  # of a model that knows more, where nothing else is said
# A card has a little less than it is sold as: an RTX 4090 of "24 GB" shows 23.6 GiB, an A100 of "80 GB" 79.2 GiB. CUDA
# itself takes half a GiB more.
SHARE_THERE = 0.98
CUDA_GIB = 0.5
MAX_GB = 100_000.0
TITLES = ("weights", "KV cache", "cache_max_entry_count", "weights, GiB", "KV, GiB", "other, GiB", "tokens", "fits")
NUM_TEXT = 2  # columns; then numbers, but for the last
SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}

EPILOG = f"""\b
Examples:
  python -m backend.plan internlm2.5-7b --gpu-memory 24 --gpu-memory 80
  python -m backend.plan ./config.json --gpu-memory 16 --session_len 4096
  python -m backend.plan ./workspace --gpu-memory 24 --tp 2

Names that need no files: {', '.join(KNOWN_MODELS)}.
"""


def _numbers(_context: click.Context, _option: click.Parameter, sizes: tuple[float, ...]) -> tuple[float, ...]:
    if any(map(math.isnan, sizes)):  # which no range refuses
        raise click.BadParameter("nan is no number of GB")
    return sizes


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("model")
@click.option("--gpu_memory", "sizes", type=click.FloatRange(1, MAX_GB), callback=_numbers, multiple=True,
              default=(24.0,), show_default=True,
              help="GB of a card, as it is sold; may be given several times.")
@click.option("--tp", type=click.IntRange(min=1), help="Cards that share the model.  [default: the workspace's, or 1]")
@click.option("--session_len", type=click.IntRange(min=1),
              help="Longest prompt + answer of one conversation, tokens.  [default: the workspace's, or at most 8192]")
@click.option("--max_batch_size", type=click.IntRange(min=1),
              help="Sequences that run at the same time; each takes work space.  [default: the workspace's, or 512]")
def main(model: str, sizes: tuple[float, ...], tp: int | None, session_len: int | None,
         max_batch_size: int | None) -> None:
    """What fits on a card: weights, KV cache, other, tokens and conversations.

    MODEL is a workspace, a Hugging Face folder or its config.json (weights may be absent), or the name of a known
    model."""
    shape, engine = read_outline(model)
    if session_len is None and engine is None:
        session_len = min(DEFAULT_SESSION_LEN, shape.max_position_embeddings)
    engine = (engine or EngineConfig(session_len)).with_options(
        {"session_len": session_len, "tp": tp, "max_batch_size": max_batch_size})
    check_engine(shape, engine)
    has_kv_scales = (Path(model).expanduser() / PAST_KV_SCALE).is_file()
    for size in sizes:
        click.echo(card_table(shape, engine, size, has_kv_scales) + "\n")


def card_table(model: ModelConfig, engine: EngineConfig, size_gb: float, has_kv_scales: bool = False) -> str:
    """The choices on a card of so many GB, as it is sold: a heading and a Markdown table.

    has_kv_scales  the workspace brings calibrated scales, see kv_format"""
    cards = f"a card of {size_gb:g} GB" if engine.tp == 1 else f"each of {engine.tp} cards of {size_gb:g} GB"
    heading = (f"{model.model_name} on {cards}: {free_bytes(size_gb) / GIB:.1f} GiB are free, it is assumed, when the "
               f"engine starts. Conversations of {engine.session_len:,} tokens, at most {engine.max_batch_size:,} at a "
               "time.")
    rows = [_row(*choice, plan) for choice, plan in plans(model, engine, free_bytes(size_gb), has_kv_scales)]
    return f"{heading}\n\n{_markdown([TITLES, *rows])}"


def free_bytes(size_gb: float) -> int:
    """What a card sold as `size_gb` has free for an engine that starts."""
    return int((SHARE_THERE * size_gb - CUDA_GIB) * GIB)


def plans(model: ModelConfig, engine: EngineConfig, free: int,
          has_kv_scales: bool = False) -> Iterator[tuple[tuple[str, str, float], MemoryPlan | str]]:
    """((weights, KV, cache_max_entry_count), the plan of one card, or why there is none) of every choice."""
    for weights in (_dense, _four_bits):
        for policy in QUANT_POLICIES:
            for share in CACHE_SHARES:
                dtype = SHORT[model.dtype]
                kv = KV_NAMES.get(kv_format(policy, has_kv_scales), dtype)
                choice = (dtype if weights is _dense else "W4A16", kv, share)
                try:
                    options = {"quant_policy": policy, "cache_max_entry_count": share}
                    yield choice, plan_memory(weights(model), engine.with_options(options), model.dtype, free,
                                              has_kv_scales=has_kv_scales)
                except (CapacityError, ConfigError) as error:
                    yield choice, str(error)


def _dense(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, quant=None)


def _four_bits(model: ModelConfig) -> ModelConfig:
    """With its own groups, or the largest that its sizes allow. Raises ConfigError where none do."""
    if model.quant is not None:
        return model
    for group_size in sorted(GROUP_SIZES, reverse=True):
        try:
            return dataclasses.replace(model, quant=QuantConfig(group_size))
        except ConfigError as error:
            fault = error
    raise fault


def _row(weights: str, kv: str, share: float, plan: MemoryPlan | str) -> tuple[str, ...]:
    if isinstance(plan, str):
        return (weights, kv, f"{share:g}", *["–"] * 4, f"does not fit: {plan}")
    sizes = (f"{num_bytes / GIB:.{1 if num_bytes >= GIB else 2}f}"
             for num_bytes in (plan.weights_bytes, plan.kv_bytes, plan.other_bytes))
    count = plan.num_sessions
    fits = f"{count:,} conversation{'s' * (count != 1)} of {plan.session_len:,}"
    return (weights, kv, f"{share:g}", *sizes, f"{plan.num_tokens:,}", fits)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """A table that reads as well in a terminal: its columns are padded, but for the last."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES) - 1)]

    def line(cells: tuple[str, ...]) -> str:
        padded = [cell.ljust(width) if column < NUM_TEXT else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(cells, widths, strict=False))]
        return f"| {' | '.join([*padded, cells[-1]])} |"

    rules = tuple("-" * width if column < NUM_TEXT else "-" * (width - 1) + ":" for column, width in enumerate(widths))
    return "\n".join([line(rows[0]), line((*rules, "---")), *map(line, rows[1:])])


if __name__ == "__main__":
    run(main)
