"""Deadline: when the time of a call is over. Used by inference.py and openai/in_flight.py."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Deadline:
    """The end of one call's time, if it has one; the earliest of those that were asked for.

    expire   called then, on the event loop
    is_over  tells its end from any other"""

    def __init__(self, expire: Callable[[], object]) -> None:
        self.timeout_s = math.inf
        self.is_over = False
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = asyncio.get_running_loop().time()

    def limit(self, timeout_s: float) -> None:
        """The call may take so many seconds, counted from its arrival."""
        if timeout_s < self.timeout_s:
            self.close()
            self.timeout_s = timeout_s
            self._timer = asyncio.get_running_loop().call_at(self._began_s + timeout_s, self._end)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        self._expire()
