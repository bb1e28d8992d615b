"""Watchdog: is the engine well? It has to answer, and with work to do it has to step.

Asks the engine for its books once a second; where it does not go on for too long, health checks fail and the stacks of
its processes are in the log. Used by backend.serve's servers for health, and by metrics. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from backend.engine.engine_client import EngineClient
from backend.errors import MillraceError
from backend.processes import STACKS_SIGNAL
from backend.requests import EngineStats

logger = logging.getLogger(__name__)

PERIOD_S = 1.0


class EngineWatchdog:
    """`start` and `stop` belong to the event loop of the engine's client.

    stuck_after_s  seconds without a step although there is work, or without an answer, that mean it is stuck
    pid            of the engine's process where it is ours: its stacks are asked for, and the log is written here
    fault          why the engine is not well, one line; None: it is
    stats          the latest books; None before the first answer"""

    def __init__(self, engine: EngineClient, stuck_after_s: float, pid: int | None = None,
                 period_s: float = PERIOD_S) -> None:
        self.fault: str | None = None
        self.stats: EngineStats | None = None
        self._engine = engine
        self._stuck_after_s = stuck_after_s
        self._pid = pid
        self._period_s = period_s
        self._task: asyncio.Task | None = None
        self._moved_s = time.monotonic()  # when it last stepped or was idle

    @property
    def is_healthy(self) -> bool:
        """Whether the engine stepped lately, or has nothing to do."""
        return self.fault is None

    def start(self) -> None:
        """Begins to look; once, however many servers ask for it."""
        if self._task is None:
            self._moved_s = time.monotonic()
            self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Looks no more; what it found stands."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self._period_s)

    async def _look(self) -> None:
        """One question; returns with `fault` up to date."""
        left_s = max(self._moved_s + self._stuck_after_s - time.monotonic(), self._period_s)
        # Not wait_for, which up to Python 3.11 can lose the cancellation by `stop`.
        question = asyncio.create_task(self._engine.stats())
        try:
            done, _ = await asyncio.wait({question}, timeout=left_s)
        finally:
            question.cancel()
        if not done:
            self._is_stuck("answered nothing")
            return
        try:
            stats = question.result()
        except MillraceError as error:
            self.fault = str(error)
        else:
            has_work = stats.num_running + stats.num_waiting > 0
            has_moved = not has_work or self.stats is None or stats.num_steps != self.stats.num_steps
            self.stats = stats
            if has_moved:
                self._has_moved()
            elif time.monotonic() - self._moved_s >= self._stuck_after_s:
                self._is_stuck(f"did no step although {stats.num_running} requests run and {stats.num_waiting} wait")

    def _has_moved(self) -> None:
        now_s = time.monotonic()
        if self.fault is not None and self._pid is not None:
            logger.warning("the engine goes on after %.0f s", now_s - self._moved_s)
        self.fault, self._moved_s = None, now_s

    def _is_stuck(self, what: str) -> None:
        """Says it once, and has the stacks of its processes logged."""
        if self.fault is not None:
            return
        self.fault = f"the engine {what} for {time.monotonic() - self._moved_s:.0f} s"
        if self._pid is None:
            return
        logger.error("%s; the stacks of its processes follow. Health checks fail until it goes on; if it "
                     "does not, restart the service", self.fault)
        ask_for_stacks(self._pid)


def ask_for_stacks(pid: int) -> None:
    """Has a process of ours and its children write where each of their threads is, on their stderr."""
    for number in (pid, *_children(pid)):
        try:
            os.kill(number, STACKS_SIGNAL)
        except ProcessLookupError:
            logger.error("the process %d is gone", number)


def _children(pid: int) -> list[int]:
    """The ranks of an engine, on Linux; they are started like the engine and so know the signal."""
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(number) for number in numbers if _is_ours(int(number))]


def _is_ours(pid: int) -> bool:
    """Whether it was started by multiprocessing's spawn: any other child would die of the signal."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
