"""Interrupt: Ctrl-C as a wish, not an exception.

So an engine is never stopped in the middle of a step, nor a stream between two messages. Used by the chat commands."""

from __future__ import annotations

import signal
from collections.abc import Callable


class Interrupt:
    """While it is open, Ctrl-C sets `is_set` and calls `act`, at most once.

    act  runs in the signal handler, so it must neither block nor take locks; None: the flag is enough"""

    def __init__(self, act: Callable[[], object] | None = None) -> None:
        self.is_set = False
        self._act = act

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        if not self.is_set and self._act is not None:
            self._act()
        self.is_set = True
