"""What backend's and converter's commands share, besides terminal/command_line.py: logging, the engine's and sampling's
options with their meanings, so that a flag has the same name, default and help wherever it appears.

Used by every module there that is run with `python -m` and by the `convert` command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click

from backend.errors import MillraceError
from backend.logs import configure_logging
from backend.requests import SamplingParams
from terminal import command_line
from terminal.command_line import CONTEXT_SETTINGS, add_options

__all__ = ["CONTEXT_SETTINGS", "engine_options", "engine_overrides", "run", "sampling_options", "sampling_params"]

# Adds the options of SamplingParams.
sampling_options = command_line.sampling_options(dataclasses.asdict(SamplingParams()))


def run(command: click.Command) -> None:
    """Runs a command; an error that the user can cure is one line on stderr and exit code 1."""
    configure_logging()
    command_line.run(command, MillraceError)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that override a workspace's config.ini; each arrives as None where it is not given."""
    return add_options(command, [
        click.option("--session_len", type=int, help="Longest prompt + answer of one conversation, in tokens."),
        click.option("--max_batch_size", type=int, help="Sequences that run at the same time."),
        click.option("--cache_max_entry_count", type=float,
                     help="KV cache: share of the memory free after the weights, or a number of blocks."),
        click.option("--use_context_fmha", type=click.BOOL, help="1: fused prefill attention; 0: plain."),
        click.option("--tp", type=int, help="Ranks (GPUs) that share the model."),
        click.option("--device", help="auto, cpu or cuda."),
        click.option("--dtype", help="auto, float32, float16 or bfloat16."),
    ])


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The SamplingParams among a command's options."""
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in options.items() if name in names})


def engine_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that engine_options added."""
    names = ("session_len", "max_batch_size", "cache_max_entry_count", "use_context_fmha", "tp", "device", "dtype")
    return {name: options[name] for name in names}
