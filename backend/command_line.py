"""What backend's and converter's commands share, besides terminal/command_line.py: logging, the engine's and sampling's
options with their meanings, so that a flag has the same name, default and help wherever it appears.

Used by every module there that is run with `python -m` and by the `convert` command."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from backend.config import DTYPE_SPELLINGS
from backend.errors import MillraceError
from backend.logs import configure_logging
from backend.model_source import MODEL_FORMATS
from backend.requests import SamplingParams
from terminal import command_line
from terminal.command_line import CONTEXT_SETTINGS, add_options

__all__ = ["CONTEXT_SETTINGS", "end_by_sigterm", "engine_options", "engine_overrides", "log_option",
           "model_format_option", "run", "sampling_options", "sampling_params"]

# Adds the options of SamplingParams.
sampling_options = command_line.sampling_options(dataclasses.asdict(SamplingParams()))


def run(command: click.Command) -> None:
    """Runs a command; an error that the user can cure is one line on stderr and exit code 1."""
    configure_logging()
    command_line.run(command, MillraceError)


def end_by_sigterm() -> None:
    """SIGTERM ends the process like Ctrl-C from here on, so that what is half-written goes then too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that override a workspace's config.ini; each arrives as None where it is not given."""
    return add_options(command, [
        click.option("--session_len", type=int,
                     help="Longest prompt + answer of one conversation, in tokens.  [default: the model's]"),
        click.option("--max_batch_size", type=int, help="Sequences that run at the same time."),
        click.option("--cache_max_entry_count", type=float,
                     help="KV cache: share of the memory free after the weights, or a number of blocks."),
        click.option("--quant_policy", type=int,
                     help="KV cache: 0, the model's dtype; 8, int8; 4, int4, or int8 with calibrated scales."),
        click.option("--enable_prefix_caching/--disable_prefix_caching", default=None,
                     help="Use again what an earlier prompt of the same beginning has computed.  [default: enabled]"),
        click.option("--cache_block_seq_len", "block_size", type=int, help="KV cache: tokens in a block."),
        click.option("--use_context_fmha", type=click.BOOL, help="1: fused prefill attention; 0: plain."),
        click.option("--tp", type=int, help="Ranks (GPUs) that share the model."),
        click.option("--device", help="auto, cpu or cuda.  [default: auto, which is cuda where there is one]"),
        click.option("--dtype", type=click.Choice(("auto", *DTYPE_SPELLINGS)),
                     help="[default: auto, which is the model's on cuda, fp32 on the CPU]"),
    ])


def model_format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --model_format, for what is no workspace."""
    return click.option("--model_format", type=click.Choice(MODEL_FORMATS),
                        help="What the folder must be: Hugging Face's, the same with AWQ weights, or Meta's.  "
                             "[default: what it is]")(command)


def log_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --log_level, which is in force once the options are read; the command itself does not get it."""
    levels = ("debug", "info", "warning", "error", "critical")
    return click.option("--log_level", type=click.Choice(levels, case_sensitive=False), default="info",
                        show_default=True, expose_value=False, callback=_set_log_level,
                        help="What is said on stderr.")(command)


def _set_log_level(_context: click.Context, _option: click.Parameter, level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The SamplingParams among a command's options."""
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in options.items() if name in names})


def engine_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that engine_options added."""
    names = ("session_len", "max_batch_size", "cache_max_entry_count", "quant_policy", "enable_prefix_caching",
             "block_size", "use_context_fmha", "tp", "device", "dtype")
    return {name: options[name] for name in names}
