"""Service: the life of what `backend.serve` starts: engine, then a server, until a signal or the death of either.

Owns the order of starting and stopping, and nothing of protocols. The server is embedded_server.py's or
tritonserver_process.py's. Used by backend/serve.py."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing.connection
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from backend.config import EngineConfig
from backend.engine.async_engine import LAST_WORDS_S, AsyncEngine
from backend.errors import MillraceError
from backend.model_source import ModelSource

logger = logging.getLogger(__name__)

LOST_ENGINE_GRACE_S = 1.0  # for the error to reach those who wait


class Server(Protocol):
    """Something that answers on an Address with the help of a running engine."""

    async def start(self) -> None:
        """Returns once requests are answered. Raises MillraceError."""

    async def ended(self) -> MillraceError:
        """Waits until the server ends unasked, and says why."""

    async def stop(self, grace_s: float) -> None:
        """Takes no new requests, gives those that run grace_s seconds, then ends. Also after a failed start."""


async def run_service(source: ModelSource, config: EngineConfig, open_server: Callable[[AsyncEngine], Server],
                      grace_s: float, on_ready: Callable[[], object]) -> None:
    """Serves until SIGTERM or SIGINT, also while the model still loads; then stops in order and returns.

    Raises MillraceError where the engine or the server cannot start or ends unasked."""
    with _stop_signal() as stop:
        async with _engine(source, config, stop) as engine:
            if engine is None:
                return
            server = open_server(engine)
            grace = grace_s
            try:
                if await _first(server.start(), stop.wait()) is True:
                    return
                on_ready()
                ended = await _first(stop.wait(), _engine_ended(engine), server.ended())
                if isinstance(ended, MillraceError):
                    grace = LOST_ENGINE_GRACE_S
                    raise ended
                logger.info("stopping: what runs may finish within %g s", grace_s)
            finally:
                await server.stop(grace)


@asynccontextmanager
async def _engine(source: ModelSource, config: EngineConfig, stop: asyncio.Event) -> AsyncIterator[AsyncEngine | None]:
    """The engine with its model loaded; None if `stop` came first."""
    engine = AsyncEngine(source, config)
    if await _first(engine.__aenter__(), stop.wait()) is True:
        yield None
        return
    try:
        yield engine
    finally:
        await engine.__aexit__(None, None, None)


async def _engine_ended(engine: AsyncEngine) -> MillraceError:
    """Waits for the end of the engine's process; a dead engine says why to whoever asks for anything."""
    await asyncio.to_thread(multiprocessing.connection.wait, [engine.process.sentinel])
    await asyncio.sleep(2 * LAST_WORDS_S)
    try:
        await engine.end_session(0)
    except MillraceError as reason:
        return reason
    raise AssertionError("an engine without a process cannot answer")


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> Any:
    """The result of whichever ends first; the others are cancelled, and have ended when this returns."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
