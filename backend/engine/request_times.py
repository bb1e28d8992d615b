"""Request times: how long one request queued, how long its prefill took, how long it had given way to others.

Part of a Sequence; scheduler.py and engine.py report what happens to it, its outputs carry the summary. Imports no
torch."""

from __future__ import annotations

import time

from backend.requests import RequestTiming


class RequestTimes:
    """Begins with the request's arrival. A summary is made only where something has happened since the last one."""

    __slots__ = ("_admitted_s", "_arrived_s", "_has_news", "_num_preemptions", "_preempted_at_s", "_preempted_s",
                 "_prefill_s")

    def __init__(self) -> None:
        self._arrived_s = time.monotonic()
        self._admitted_s: float | None = None
        self._prefill_s: float | None = None
        self._preempted_at_s = 0.0
        self._preempted_s = 0.0
        self._num_preemptions = 0
        self._has_news = False

    def admitted(self) -> None:
        """It got a row, for the first time or again after a preemption."""
        now_s = time.monotonic()
        if self._admitted_s is None:
            self._admitted_s = now_s
        else:
            self._preempted_s += now_s - self._preempted_at_s
            self._has_news = True

    def preempted(self) -> None:
        """It lost its row and waits again."""
        self._preempted_at_s = time.monotonic()
        self._num_preemptions += 1

    def news(self, has_token: bool) -> RequestTiming | None:
        """What the next output says: something with the first token and after each preemption, else None.

        has_token  whether that output brings a token"""
        if has_token and self._prefill_s is None:
            self._prefill_s = time.monotonic() - self._admitted_s - self._preempted_s
            self._has_news = True
        if not self._has_news:
            return None
        self._has_news = False
        return RequestTiming(self._admitted_s - self._arrived_s, self._prefill_s or 0.0, self._preempted_s,
                             self._num_preemptions)
