"""Async engine: an engine's process of one's own, and the connection to it.

Starts the process and ends it; says how it died where it could not say so itself. Used by backend/serve.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile

import zmq

from backend.config import EngineConfig
from backend.engine.engine_client import EngineClient
from backend.errors import EngineDeadError
from backend.model_source import ModelSource
from backend.processes import start_process

STOP_TIMEOUT_S = 10.0
LAST_WORDS_S = 0.2  # how long words of a process that has ended may still be on their way


def _run_engine(source: ModelSource, config: EngineConfig, address: str) -> None:
    """The process's body. It alone imports the engine, and torch with it: the front end starts without."""
    from backend.engine.engine_process import run_engine_process

    run_engine_process(source, config, address)


class AsyncEngine(EngineClient):
    """Use as `async with AsyncEngine(source, config) as engine:`; the model is loaded once it is entered.

    address  where further front ends can connect an EngineClient"""

    def __init__(self, source: ModelSource, config: EngineConfig) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="millrace-")
        self.address = f"ipc://{os.path.join(self._folder.name, 'engine')}"
        super().__init__(self.address)
        self._source, self._config = source, config

    async def __aenter__(self) -> AsyncEngine:
        self.process = start_process(_run_engine, (self._source, self._config, self.address), "millrace-engine")
        self._exit_watch = asyncio.create_task(self._watch_process())
        try:
            await super().__aenter__()
        except BaseException:
            self.process.kill()
            await self._join()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the process; what still runs is told that the engine was stopped."""
        self.fail(EngineDeadError("the engine was stopped"))
        with contextlib.suppress(zmq.ZMQError):
            await self.stop_engine()
        await super().__aexit__()
        await self._join()

    async def _join(self) -> None:
        self._exit_watch.cancel()
        await asyncio.to_thread(self.process.join, STOP_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)
        self._folder.cleanup()

    async def _watch_process(self) -> None:
        """Its last words arrive through the connection; a process that could not speak is reported by its exit code."""
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.process.sentinel, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(self.process.sentinel)
        await asyncio.sleep(LAST_WORDS_S)
        code = self.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        cure = "; the machine may be out of memory" if code == -9 else "; its log says more"
        self.fail(EngineDeadError(f"the engine process {how}{cure}"))

    async def _connection_lost(self) -> None:
        """The process is ours, so how it exits says more than that the connection is gone."""
