"""Operations: what looks after the requests of one front end, whatever protocol they come in.

Owns metrics, watchdog and tracing, and hooks them to the engine's client. Used by embedded_server.py and by the servers
it starts. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib

from backend.engine.engine_client import EngineClient
from backend.errors import MillraceError
from backend.requests import EngineStats
from backend.serving.metrics import Metrics
from backend.serving.server_options import ServerOptions
from backend.serving.tracing import Tracing, open_tracing
from backend.serving.watchdog import EngineWatchdog

BOOKS_TIMEOUT_S = 5.0  # below Prometheus' own, so that an engine that is getting stuck still has metrics


class Operations:
    """pid  of the engine's process where it is ours. Raises ConfigError for tracing that cannot be had."""

    def __init__(self, options: ServerOptions, engine: EngineClient, pid: int | None = None) -> None:
        self.options = options
        self.metrics = Metrics()
        self.watchdog = EngineWatchdog(engine, options.stuck_after_s, pid)
        self.tracing: Tracing | None = open_tracing(options.otlp_endpoint)
        self._engine = engine
        self._num_users = 0
        engine.observe = self.metrics.observe

    def start(self) -> None:
        """By each server that uses it, once the engine is ready."""
        self._num_users += 1
        self.watchdog.start()

    async def stop(self) -> None:
        """By each server that has started it; ends with the last."""
        self._num_users -= 1
        if self._num_users > 0:
            return
        await self.watchdog.stop()
        if self.tracing is not None:
            self.tracing.close()

    async def scrape(self) -> bytes:
        """All metrics, in Prometheus' text format; the books of an engine that does not answer are left out."""
        stats: EngineStats | None = None
        if self.watchdog.is_healthy:
            with contextlib.suppress(MillraceError, asyncio.TimeoutError):
                stats = await asyncio.wait_for(self._engine.stats(), BOOKS_TIMEOUT_S)
        return self.metrics.render(stats, self.watchdog.is_healthy)
