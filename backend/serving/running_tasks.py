"""Running tasks: the tasks that answer one server's requests now, and how they end when the server stops.

Used by inference.py and openai/in_flight.py. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging

logger = logging.getLogger(__name__)


class RunningTasks:
    """Belongs to one event loop.

    is_stopping  no more requests are to be taken
    is_aborting  what is cancelled from now on is so because its time to finish is over"""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_stopping = False
        self.is_aborting = False

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: asyncio.Task) -> None:
        """`discard` has to follow, however the task ends."""
        self._tasks.add(task)
        self._idle.clear()

    def discard(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def stop(self, grace_s: float) -> None:
        """Waits for the running ones, and ends those that take longer than `grace_s`."""
        self.is_stopping = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        if not self._tasks:
            return
        self.is_aborting = True
        running = list(self._tasks)
        logger.warning("stopping: %d requests did not complete within %g s and are ended", len(running), grace_s)
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=1.0)
