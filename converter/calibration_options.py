"""Calibration options: what the commands of auto_awq and kv_qparams ask in the same words. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from terminal.command_line import add_options

SHORTEST_SEQLEN = 16


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --calib_dataset, --calib_samples, --calib_seqlen and --device."""
    return add_options(command, [
        click.option("--calib_dataset", metavar="FILE|NAME",
                     help="Text to observe the model on: a .txt, .jsonl (fields text, content or messages), .parquet "
                          "or .arrow file, or ptb, wikitext2, c4, pileval from the local Hugging Face cache.  "
                          "[default: a small text that Millrace brings]"),
        click.option("--calib_samples", type=click.IntRange(min=1), default=128, show_default=True,
                     help="Windows drawn from the text at random, always the same."),
        click.option("--calib_seqlen", type=click.IntRange(min=SHORTEST_SEQLEN), default=2048, show_default=True,
                     help="Tokens of a window."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    ])
