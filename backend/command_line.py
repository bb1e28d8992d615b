"""What all of Millrace's commands share: both spellings of an option, one-line errors, and the engine's and sampling's
options with their meanings, so that a flag has the same name, default and help wherever it appears.

Used by every module that is run with `python -m` and by the `convert` command."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from backend.errors import MillraceError
from backend.logs import configure_logging
from backend.requests import SamplingParams

# --top_p and --top-p are one option, as users of either habit expect.
CONTEXT_SETTINGS = {"token_normalize_func": lambda name: name.replace("-", "_"), "help_option_names": ["-h", "--help"],
                    "max_content_width": 110}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_DEFAULTS = SamplingParams()


def run(command: click.Command) -> None:
    """Runs a command; an error that the user can cure is one line on stderr and exit code 1."""
    configure_logging()
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MillraceError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that override a workspace's config.ini; each arrives as None where it is not given."""
    return _add(command, [
        click.option("--session_len", type=int, help="Longest prompt + answer of one conversation, in tokens."),
        click.option("--max_batch_size", type=int, help="Sequences that run at the same time."),
        click.option("--cache_max_entry_count", type=float,
                     help="KV cache: share of the memory free after the weights, or a number of blocks."),
        click.option("--use_context_fmha", type=click.BOOL, help="1: fused prefill attention; 0: plain."),
        click.option("--tp", type=int, help="Ranks (GPUs) that share the model."),
        click.option("--device", help="auto, cpu or cuda."),
        click.option("--dtype", help="auto, float32, float16 or bfloat16."),
    ])


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of SamplingParams."""
    return _add(command, [
        click.option("--max_new_tokens", type=int, help="Longest answer; as long as the session lasts if not given."),
        click.option("--temperature", type=float, default=_DEFAULTS.temperature, show_default=True,
                     help="0 is greedy."),
        click.option("--top_p", type=float, default=_DEFAULTS.top_p, show_default=True),
        click.option("--top_k", type=int, default=_DEFAULTS.top_k, show_default=True, help="0 keeps all tokens."),
        click.option("--min_p", type=float, default=_DEFAULTS.min_p, show_default=True),
        click.option("--repetition_penalty", type=float, default=_DEFAULTS.repetition_penalty, show_default=True),
        click.option("--seed", type=int, help="Equal seeds give equal answers; random if not given."),
        click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times."),
        click.option("--ignore_eos", is_flag=True, help="Go on past the model's own end."),
    ])


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The SamplingParams among a command's options."""
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in options.items() if name in names})


def engine_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that engine_options added."""
    names = ("session_len", "max_batch_size", "cache_max_entry_count", "use_context_fmha", "tp", "device", "dtype")
    return {name: options[name] for name in names}


def _add(command: Callable[..., Any], decorators: list[Decorator]) -> Callable[..., Any]:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
