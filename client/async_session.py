"""AsyncSession: session.py's Session for asyncio, with the same names. Made by AsyncChatClient.session()."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING

from client.async_http_connection import AsyncHttpConnection
from client.connection import AsyncConnection
from client.conversation import Conversation
from client.errors import ChatError, HistoryNeededError, RequestRefusedError, ServerFailedError, SessionLostError
from client.session import STOP_RETRY_S, Answer, RunningTurn
from client.wire import Increment, sampling_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from client.wire import Sampling


class AsyncSession:
    """A chat: `(await session.infer("Hello!")).text`, or `async for part in session.stream("Hello!"): ...`.

    One turn at a time; cancel() and end() may come from any task of the loop, many sessions may run at once."""

    def __init__(self, connection: AsyncConnection | AsyncHttpConnection, session_id: int) -> None:
        self.id = session_id
        self._connection = connection
        self._conversation = Conversation()
        self._running: RunningTurn | None = None
        self._is_on_server = False  # or may be

    @property
    def history(self) -> list[tuple[str, str]]:
        """As Session.history."""
        return [(turn.question, turn.answer) for turn in self._conversation.turns]

    @property
    def num_tokens(self) -> int:
        """As Session.num_tokens."""
        return self._conversation.num_tokens or 0

    async def stream(self, text: str, system: str | None = None,
                     **sampling: Unpack[Sampling]) -> AsyncGenerator[Increment, None]:
        """As Session.stream. A loop that is left early stops the answer when the generator is closed, which asyncio
        does on its own but late: use contextlib.aclosing to have it at once."""
        with self._turn() as turn:
            answer, last = "", None
            async with aclosing(self._parts(turn.conversation, text, system, sampling)) as parts:
                async for part in parts:
                    turn.has_begun = True
                    answer, last = answer + part.text, part
                    if part.finish_reason is not None:
                        turn.conversation.record(text, answer, part)
                    try:
                        yield part
                    except GeneratorExit:
                        if part.finish_reason is None:
                            await self._finish_early(text, answer, turn, parts)
                        raise
            if last is None or last.finish_reason is None:
                raise ServerFailedError(f"session {self.id}: the stream closed before the answer ended")

    async def infer(self, text: str, system: str | None = None, **sampling: Unpack[Sampling]) -> Answer:
        """As Session.infer."""
        answer = ""
        async for part in self.stream(text, system, **sampling):
            answer += part.text
        return Answer(answer, part.finish_reason or "", part.num_prompt_tokens, part.num_cached_tokens,
                      part.num_completion_tokens, part.num_session_tokens)

    async def cancel(self) -> None:
        """As Session.cancel."""
        if self._running is not None:
            await self._interrupt({"CORRID": self.id, "STOP": 1})

    def resume(self) -> None:
        """As Session.resume."""
        with self._turn() as turn:
            turn.conversation.begin_anew()

    def undo(self) -> str:
        """As Session.undo."""
        with self._turn() as turn:
            return turn.conversation.undo()

    def retry(self, **sampling: Unpack[Sampling]) -> AsyncGenerator[Increment, None]:
        """As Session.retry."""
        return self.stream(self.undo(), **sampling)

    async def end(self) -> None:
        """As Session.end."""
        self._conversation = Conversation()
        if self._is_on_server:
            self._is_on_server = False
            await self._interrupt({"CORRID": self.id, "STOP": 1, "END": 1})

    async def _parts(self, conversation: Conversation, text: str, system: str | None,
                     sampling: Sampling) -> AsyncGenerator[Increment, None]:
        options = {**sampling_inputs(sampling), "CORRID": self.id}
        try:
            inputs = {**conversation.next_inputs(text, system), **options}
            self._is_on_server = True
            async with aclosing(self._connection.infer(inputs)) as parts:
                async for part in parts:
                    yield part
        except HistoryNeededError:
            conversation.tells_all = True
            inputs = {**conversation.next_inputs(text, system), **options}
            async with aclosing(self._connection.infer(inputs)) as parts:
                async for part in parts:
                    yield part

    async def _interrupt(self, inputs: dict[str, int]) -> None:
        turn = self._running
        while True:
            has_begun = turn is None or turn.has_begun
            with suppress(RequestRefusedError, SessionLostError):
                await self._connection.command(inputs)
            if has_begun or turn.is_over.is_set():
                return
            await asyncio.sleep(STOP_RETRY_S)

    async def _finish_early(self, text: str, answer: str, turn: RunningTurn,
                            parts: AsyncGenerator[Increment, None]) -> None:
        with suppress(ChatError):
            await self.cancel()
            async for part in parts:
                answer += part.text
                if part.finish_reason is not None:
                    turn.conversation.record(text, answer, part)

    @contextmanager
    def _turn(self) -> Generator[RunningTurn, None, None]:
        if self._running is not None:
            raise RequestRefusedError(f"session {self.id} is answering; cancel() that turn or wait for its end")
        turn = self._running = RunningTurn(self._conversation)
        try:
            yield turn
        finally:
            self._running = None
            turn.is_over.set()
