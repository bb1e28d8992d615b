"""Async engine: the front end's side of the engine process. Requests in, async streams of outputs out.

Starts the process, owns the connection, and turns its death into one EngineDeadError for everybody who waits.
Used by serving."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import AsyncIterator

import msgspec
import zmq
import zmq.asyncio

from backend import errors
from backend.config import EngineConfig
from backend.engine.engine_process import Command, Event, run_engine_process, unlimited_queues
from backend.errors import EngineDeadError, MillraceError
from backend.model_source import ModelSource
from backend.requests import GenerateOutput, GenerateRequest

STOP_TIMEOUT_S = 10.0


class AsyncEngine:
    """Use as `async with AsyncEngine(source, config) as engine:`; ready once entered.

    Raises the engine's own error where it cannot start, EngineDeadError where it ends later."""

    def __init__(self, source: ModelSource, config: EngineConfig) -> None:
        self._source, self._config = source, config
        self._streams: dict[str, asyncio.Queue[GenerateOutput | MillraceError]] = {}
        self._dead: MillraceError | None = None
        self._ready = asyncio.Event()
        self._encode = msgspec.msgpack.Encoder().encode

    async def __aenter__(self) -> AsyncEngine:
        self._folder = tempfile.TemporaryDirectory(prefix="millrace-")
        address = f"ipc://{os.path.join(self._folder.name, 'engine')}"
        self.process = multiprocessing.get_context("spawn").Process(
            target=run_engine_process, args=(self._source, self._config, address), name="millrace-engine")
        self.process.start()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        unlimited_queues(self._socket)
        self._socket.connect(address)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch_process())]
        try:
            await self._send(Command("hello"))
            await self._ready.wait()
        except BaseException:  # Ctrl-C while the model loads: nobody else would end the process
            self.process.kill()
            await self.__aexit__()
            raise
        if self._dead is not None:
            await self.__aexit__()
            raise self._dead
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the process; what still runs is told that the engine was stopped."""
        self._fail(EngineDeadError("the engine was stopped"))
        with contextlib.suppress(zmq.ZMQError):
            await self._send(Command("stop"))
        await asyncio.to_thread(self.process.join, STOP_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)
        for task in self._tasks:
            task.cancel()
        self._context.destroy(linger=0)
        self._folder.cleanup()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateOutput]:
        """The request's outputs until one has a finish_reason. Leaving the iteration early aborts the request.

        Raises what the engine refused it with (RequestError, SessionError …), or EngineDeadError."""
        if self._dead is not None:
            raise self._dead
        if request.request_id in self._streams:
            raise errors.RequestError(f"request id {request.request_id!r} is in use; give each request its own")
        stream = self._streams[request.request_id] = asyncio.Queue()
        is_over = False
        try:
            await self._send(Command("add", request=request))
            while not is_over:
                item = await stream.get()
                is_over = isinstance(item, MillraceError) or item.finish_reason is not None
                if isinstance(item, MillraceError):
                    raise item
                yield item
        finally:
            del self._streams[request.request_id]
            if not is_over and self._dead is None:
                await self._send(Command("abort", request_id=request.request_id))

    async def abort(self, request_id: str) -> None:
        """Ends a request; its stream gets one last output with finish_reason abort."""
        await self._send(Command("abort", request_id=request_id))

    async def finish(self, request_id: str, num_completion_tokens: int) -> None:
        """Ends a request whose text reached a stop word; see Engine.finish."""
        await self._send(Command("finish", request_id=request_id, num_completion_tokens=num_completion_tokens))

    async def end_session(self, session_id: int) -> None:
        """Forgets a session; a running turn is not disturbed. An unknown id is no error here, unlike Engine's."""
        await self._send(Command("end_session", session_id=session_id))

    async def _send(self, command: Command) -> None:
        try:
            payload = self._encode(command)
        except (TypeError, OverflowError) as error:
            raise errors.RequestError(f"a request that cannot be sent: {error}; use Python integers of 64 bits, "
                                      "floats and strings") from None
        await self._socket.send(payload)

    async def _receive(self) -> None:
        decode = msgspec.msgpack.Decoder(Event).decode
        while True:
            event = decode(await self._socket.recv())
            for output in event.outputs:
                self._deliver(output.request_id, output)
            if event.refused is not None:
                self._deliver(event.refused.request_id, _error(event.refused.error, event.refused.message))
            if event.ready:
                self._ready.set()
            if event.dead:
                self._fail(_error(*event.dead.split(": ", 1)))

    async def _watch_process(self) -> None:
        """Its last words arrive through the socket; a process that could not speak is reported by its exit code."""
        exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.process.sentinel, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(self.process.sentinel)
        await asyncio.sleep(0.2)  # time for words already on the way
        code = self.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        cure = "; the machine may be out of memory" if code == -9 else "; its log says more"
        self._fail(EngineDeadError(f"the engine process {how}{cure}"))

    def _deliver(self, request_id: str, item: GenerateOutput | MillraceError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(item)

    def _fail(self, error: MillraceError) -> None:
        if self._dead is None:
            self._dead = error
            for stream in self._streams.values():
                stream.put_nowait(error)
            self._ready.set()


def _error(name: str, message: str) -> MillraceError:
    """The error class of that name, or EngineDeadError for what is not one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MillraceError):
        return kind(message)
    return EngineDeadError(f"{name}: {message}")
