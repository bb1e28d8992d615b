"""Start log: how long each phase of a worker's start took, in one line each and one for all of them.

Used by worker.py; `seconds` also by benchmarks/first_token.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from backend.worker import IMPORTS_BEGIN_S

logger = logging.getLogger(__name__)


class StartLog:
    """seconds: phase → how long it took, in order. Made when imports are over, which count as the first phase.

    is_silent  ranks but the first keep the figures to themselves"""

    def __init__(self, imports_end_s: float, is_silent: bool) -> None:
        self.is_silent = is_silent
        self.seconds = {"imports": imports_end_s - IMPORTS_BEGIN_S}
        self._begin_s = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[list[str]]:
        """Times what is inside; what that puts into the list is said after the name. Phases of one name add up."""
        begin_s = time.perf_counter()
        facts: list[str] = []
        yield facts
        seconds = time.perf_counter() - begin_s
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if not self.is_silent:
            logger.info("%s: %s", name, ", ".join([*facts, f"{seconds:.1f} s"]))

    def log_ready(self) -> None:
        """The sum: wall-clock time since __init__, waiting for other ranks included, and the imports."""
        if not self.is_silent:
            total_s = self.seconds["imports"] + time.perf_counter() - self._begin_s
            logger.info("ready in %.1f s: %s", total_s,
                        ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items()))
