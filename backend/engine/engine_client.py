"""Engine client: a front end's connection to an engine's process. Requests in, async streams of outputs out.

Owns the connection and turns its loss, or the engine's last words, into one EngineDeadError for everybody who waits;
connects again by itself when an engine is back at the address. Used by async_engine.py and by the models that run
inside Triton Inference Server. Imports no torch."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from backend import errors
from backend.engine.messages import Command, Event, unlimited_queues
from backend.errors import ContextLengthError, EngineDeadError, MillraceError, RequestError
from backend.requests import EngineStats, FinishReason, GenerateOutput, GenerateRequest


class RequestObserver(Protocol):
    """Is told what becomes of one request. Called on the event loop, once per output: it has to be quick."""

    def output(self, output: GenerateOutput) -> None:
        """An output arrived."""

    def ended(self, outcome: str) -> None:
        """Nothing more follows. outcome: a FinishReason's value, or the name of the error's class."""


_Item = GenerateOutput | MillraceError | EngineStats | None  # None: a command was carried out


class EngineClient:
    """Use as `async with EngineClient(address) as engine:`; the engine is ready once it is entered.

    session_len  the engine's, tokens;  max_requests  that it holds at once, in its batch and its queue
    observe      gives each request its observer; None: nobody looks on
    Raises the engine's own error where it could not start, EngineDeadError where it ends later."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: dict[str, asyncio.Queue[_Item]] = {}
        self.session_len = self.max_requests = 0
        self.observe: Callable[[GenerateRequest], RequestObserver] | None = None
        self._stopped: set[str] = set()  # requests that the front end itself has ended
        self._dead: MillraceError | None = None
        self._ready = asyncio.Event()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Event).decode
        self._name = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()

    async def __aenter__(self) -> EngineClient:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        unlimited_queues(self._socket)
        monitor = self._socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(self._address)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch_connection(monitor))]
        try:
            await self._ready.wait()
            if self._dead is not None:
                raise self._dead
        except BaseException:  # Ctrl-C too, while the model loads
            await EngineClient.__aexit__(self)  # the connection's end, and no more
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connection; the engine aborts what still runs for it."""
        self.fail(EngineDeadError("the connection to the engine was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._context.destroy(linger=200)

    def new_request_id(self) -> str:
        """An id that no request of any front end of this engine has had."""
        return f"{self._name}-{next(self._numbers)}"

    def check_length(self, num_tokens: int) -> None:
        """Raises ContextLengthError for a prompt that the engine, which all share, need not read to refuse it."""
        if num_tokens > self.session_len:
            raise ContextLengthError(f"{num_tokens} prompt tokens exceed session_len={self.session_len}; shorten the "
                                     "prompt")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateOutput, None]:
        """The request's outputs until one has a finish_reason. Leaving the iteration early aborts the request.

        Raises what the engine refused it with (RequestError, SessionError …), or EngineDeadError."""
        if self._dead is not None:
            raise self._dead
        self.check_length(len(request.token_ids))
        if request.request_id in self._waiting:
            raise RequestError(f"request id {request.request_id!r} is in use; give each request its own")
        stream = self._waiting[request.request_id] = asyncio.Queue()
        observer = None if self.observe is None else self.observe(request)
        is_over, outcome = False, FinishReason.ABORT.value
        try:
            await self._send(Command("add", request=request))
            while not is_over:
                item = await stream.get()
                is_over = isinstance(item, MillraceError) or item.finish_reason is not None
                if isinstance(item, MillraceError):
                    raise item
                if is_over:
                    outcome = item.finish_reason.value
                if observer is not None:
                    observer.output(item)
                yield item
        except MillraceError as error:
            outcome = type(error).__name__
            raise
        finally:
            del self._waiting[request.request_id]
            if request.request_id in self._stopped:
                self._stopped.remove(request.request_id)
                outcome = FinishReason.STOP.value
            if observer is not None:
                observer.ended(outcome)
            if not is_over and self._dead is None:
                await self._send(Command("abort", request_id=request.request_id))

    async def abort(self, request_id: str) -> None:
        """Ends a request; its stream gets one last output with finish_reason abort."""
        await self._send(Command("abort", request_id=request_id))

    async def abort_group(self, group: str) -> None:
        """Ends any front end's requests that are named `group` and a number; see Engine.abort_group.

        Raises RequestError if there is none."""
        await self._call(Command("abort_group", call_id=self.new_request_id(), request_id=group))

    async def finish(self, request: GenerateRequest, num_completion_tokens: int) -> None:
        """Ends a request whose text reached a stop word, also if its last output has just come; see Engine.finish."""
        if request.request_id in self._waiting:
            self._stopped.add(request.request_id)
        await self._send(Command("finish", request_id=request.request_id, session_id=request.session_id,
                                 num_completion_tokens=num_completion_tokens))

    async def stop_session(self, session_id: int, forget: bool = False) -> None:
        """Interrupts a session's running turn; see Engine.stop_session. Raises SessionError."""
        await self._call(Command("stop_session", call_id=self.new_request_id(), session_id=session_id, forget=forget))

    async def end_session(self, session_id: int) -> None:
        """Forgets a session; see Engine.end_session. Raises SessionError if it is unknown."""
        await self._call(Command("end_session", call_id=self.new_request_id(), session_id=session_id))

    async def stats(self) -> EngineStats:
        """The engine's books at this moment."""
        return await self._call(Command("stats", call_id=self.new_request_id()))

    async def stop_engine(self) -> None:
        """Tells the engine's process to end; only for whoever started it."""
        await self._send(Command("stop"))

    def fail(self, error: MillraceError) -> None:
        """Everybody who waits, and whoever comes later, gets this error. The first one counts."""
        if self._dead is None:
            self._dead = error
            for stream in self._waiting.values():
                stream.put_nowait(error)
            self._ready.set()

    async def _call(self, command: Command) -> EngineStats | None:
        if self._dead is not None:
            raise self._dead
        answer = self._waiting[command.call_id] = asyncio.Queue()
        try:
            await self._send(command)
            item = await answer.get()
            if isinstance(item, MillraceError):
                raise item
            return item
        finally:
            del self._waiting[command.call_id]

    async def _send(self, command: Command) -> None:
        try:
            payload = self._encode(command)
        except (TypeError, OverflowError, UnicodeEncodeError) as error:
            raise RequestError(f"a request that cannot be sent: {error}; use Python integers of 64 bits, floats and "
                               "strings without lone surrogates") from None
        await self._socket.send(payload)

    async def _receive(self) -> None:
        while True:
            event = self._decode(await self._socket.recv())
            for output in event.outputs:
                self._deliver(output.request_id, output)
            if event.refused is not None:
                self._deliver(event.refused.about, _error(event.refused.error, event.refused.message,
                                                                event.refused.field))
            if event.done:
                self._deliver(event.done, event.stats)
            if event.ready:
                self._dead, self.session_len, self.max_requests = None, event.session_len, event.max_requests
                self._ready.set()
            if event.dead:
                self.fail(_error(*event.dead.split(": ", 1)))

    async def _watch_connection(self, monitor: zmq.asyncio.Socket) -> None:
        """Says hello whenever the engine can be reached, also when it comes back after a loss."""
        while True:
            event = (await recv_monitor_message(monitor))["event"]
            if event == zmq.EVENT_CONNECTED:
                await self._send(Command("hello"))
            elif event == zmq.EVENT_DISCONNECTED:
                await self._connection_lost()

    async def _connection_lost(self) -> None:
        self.fail(EngineDeadError("the engine's process is gone; its log says why"))

    def _deliver(self, about: str, item: _Item) -> None:
        stream = self._waiting.get(about)
        if stream is not None:
            stream.put_nowait(item)


def _error(name: str, message: str, field: str | None = None) -> MillraceError:
    """The error class of that name, or EngineDeadError for what is not one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MillraceError):
        return kind(message, field) if issubclass(kind, RequestError) else kind(message)
    return EngineDeadError(f"{name}: {message}")
