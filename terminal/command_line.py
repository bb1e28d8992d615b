"""What all of Millrace's commands share: both spellings of an option, one-line errors, the sampling options.

Used by backend/command_line.py, which adds the engine's options, and by client/cli.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

# --top_p and --top-p are one option, as users of either habit expect.
CONTEXT_SETTINGS = {"token_normalize_func": lambda name: name.replace("-", "_"), "help_option_names": ["-h", "--help"],
                    "max_content_width": 110}

Command = Callable[..., Any]


def run(command: click.Command, user_error: type[Exception]) -> None:
    """Runs a command; an error that the user can cure is one line on stderr and exit code 1.

    user_error  the base class of such errors"""
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except user_error as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)


def sampling_options(defaults: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Decorator that adds the options of sampling; one without a default arrives as None where it is not given."""
    def option(name: str, kind: type, text: str | None = None) -> Callable[[Command], Command]:
        default = defaults.get(name)
        return click.option(f"--{name}", type=kind, default=default, show_default=default is not None, help=text)

    return lambda command: add_options(command, [
        option("max_new_tokens", int, "Longest answer; as long as the session lasts if not given."),
        option("temperature", float, "0 is greedy."),
        option("top_p", float),
        option("top_k", int, "0 keeps all tokens."),
        option("min_p", float),
        option("repetition_penalty", float),
        option("seed", int, "Equal seeds give equal answers; random if not given."),
        click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times."),
        click.option("--ignore_eos", is_flag=True, help="Go on past the model's own end."),
    ])


def add_options(command: Command, decorators: list[Callable[[Command], Command]]) -> Command:
    """The command with these options, listed by --help in this order."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
