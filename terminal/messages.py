"""Messages: reading a message of several lines from a person, or from a pipe. A blank line sends it.

Used by the chat commands of backend and client."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.key_binding import KeyBindings

COMMANDS = ("end", "exit")  # sent by a single Enter
PROMPT = "\ndouble enter to end input >>> "


def messages() -> Iterator[str]:
    """What the user sends, one message at a time, until the input ends. KeyboardInterrupt at the prompt clears it."""
    if not sys.stdin.isatty():
        yield from _piped_messages()
        return
    session: PromptSession[str] = PromptSession(
        multiline=True, key_bindings=_double_enter(), prompt_continuation="... ")
    while True:
        try:
            yield session.prompt(PROMPT).strip()
        except KeyboardInterrupt:
            print("(type exit to leave)")
        except EOFError:
            return


def _piped_messages() -> Iterator[str]:
    lines: list[str] = []
    for line in sys.stdin:
        if line.strip() and not (not lines and line.strip() in COMMANDS):
            lines.append(line)
            continue
        lines.append(line)
        yield "".join(lines).strip()
        lines = []
    if lines:
        yield "".join(lines).strip()


def _double_enter() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: object) -> None:
        buffer = get_app().current_buffer
        is_blank_line = not buffer.document.current_line.strip()
        if (buffer.text.strip() and is_blank_line) or buffer.text.strip() in COMMANDS:
            buffer.validate_and_handle()
        elif buffer.text.strip():
            buffer.insert_text("\n")

    return bindings
