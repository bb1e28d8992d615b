"""Session: one conversation, whose memory the server keeps between turns where its protocol has sessions.

Owns the turn that runs, so that only one does and any thread can stop it. What to send is conversation.py's, how it
travels connection.py's or http_connection.py's. Made by ChatClient.session(); async_session.py is its twin."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from client.connection import Connection
from client.conversation import Conversation
from client.errors import ChatError, HistoryNeededError, RequestRefusedError, ServerFailedError, SessionLostError
from client.http_connection import HttpConnection
from client.wire import Increment, sampling_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from client.wire import Sampling

STOP_RETRY_S = 0.05  # until a turn that was just sent has reached the server


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the fields are those of the last Increment, `text` is all of it."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_session_tokens: int


@dataclass(slots=True)
class RunningTurn:
    """has_begun  the server has answered something, so it knows the turn"""

    conversation: Conversation
    has_begun: bool = False
    is_over: threading.Event = field(default_factory=threading.Event)


class Session:
    """A chat: `session.infer("Hello!").text`, or `for part in session.stream("Hello!"): print(part.text, end="")`.

    One turn at a time; cancel() and end() may come from any thread, many sessions may run at once."""

    def __init__(self, connection: Connection | HttpConnection, session_id: int) -> None:
        self.id = session_id
        self._connection = connection
        self._conversation = Conversation()
        self._running: RunningTurn | None = None
        self._lock = threading.Lock()  # of _running
        self._is_on_server = False  # or may be

    @property
    def history(self) -> list[tuple[str, str]]:
        """(question, answer) of each turn; a cancelled answer as far as it came."""
        return [(turn.question, turn.answer) for turn in self._conversation.turns]

    @property
    def num_tokens(self) -> int:
        """Tokens that the server's session holds; 0 before the first turn and after resume()."""
        return self._conversation.num_tokens or 0

    def stream(self, text: str, system: str | None = None,
               **sampling: Unpack[Sampling]) -> Generator[Increment, None, None]:
        """Asks, and yields the answer as it grows. It is sent when the first increment is asked for.

            for part in session.stream("Hello!", max_new_tokens=100, temperature=0):
                print(part.text, end="", flush=True)

        system  begins the conversation, so it comes with its first turn
        Leaving the loop early is cancel(): what was generated stays in the session.
        Raises ServerAwayError, ServerFailedError, DeadlineError, SessionLostError, SessionFullError, or
        RequestRefusedError, also while another turn runs. After an error the turn has left no trace; it may be asked
        again."""
        with self._turn() as turn:
            answer, last = "", None
            with closing(self._parts(turn.conversation, text, system, sampling)) as parts:
                for part in parts:
                    turn.has_begun = True
                    answer, last = answer + part.text, part
                    if part.finish_reason is not None:
                        turn.conversation.record(text, answer, part)
                    try:
                        yield part
                    except GeneratorExit:
                        if part.finish_reason is None:
                            self._finish_early(text, answer, turn, parts)
                        raise
            if last is None or last.finish_reason is None:
                raise ServerFailedError(f"session {self.id}: the stream closed before the answer ended")

    def infer(self, text: str, system: str | None = None, **sampling: Unpack[Sampling]) -> Answer:
        """Asks, and returns the whole answer: `session.infer("What is 2 + 3?").text`. Arguments, errors as stream()."""
        answer = ""
        for part in self.stream(text, system, **sampling):
            answer += part.text
        return Answer(answer, part.finish_reason or "", part.num_prompt_tokens, part.num_cached_tokens,
                      part.num_completion_tokens, part.num_session_tokens)

    def cancel(self) -> None:
        """Stops the running turn on the server; nothing where none runs. Its stream ends with finish_reason abort.

        What was generated stays in the session, and the next turn goes on from there."""
        if self._running is not None:
            self._interrupt({"CORRID": self.id, "STOP": 1})

    def resume(self) -> None:
        """The cure of SessionLostError: the next turn brings the whole conversation with it, and the server's session
        is begun anew. Costs nothing now and the computing of the history then."""
        with self._turn() as turn:
            turn.conversation.begin_anew()

    def undo(self) -> str:
        """Takes the last turn back, here at once and on the server with the next turn. Returns its question."""
        with self._turn() as turn:
            return turn.conversation.undo()

    def retry(self, **sampling: Unpack[Sampling]) -> Generator[Increment, None, None]:
        """Takes the last turn back, at once, and asks its question again, as stream()."""
        return self.stream(self.undo(), **sampling)

    def end(self) -> None:
        """Forgets the conversation, here and on the server; a running turn is stopped. The next turn begins a new one.

        Here it is forgotten even where the server is away and ServerAwayError is raised."""
        self._conversation = Conversation()
        if self._is_on_server:
            self._is_on_server = False
            self._interrupt({"CORRID": self.id, "STOP": 1, "END": 1})

    def _parts(self, conversation: Conversation, text: str, system: str | None,
               sampling: Sampling) -> Generator[Increment, None, None]:
        """The increments, from a second request where the server needs the whole conversation for them."""
        options = {**sampling_inputs(sampling), "CORRID": self.id}
        try:
            inputs = {**conversation.next_inputs(text, system), **options}
            self._is_on_server = True
            yield from self._connection.infer(inputs)
        except HistoryNeededError:
            conversation.tells_all = True
            yield from self._connection.infer({**conversation.next_inputs(text, system), **options})

    def _interrupt(self, inputs: dict[str, int]) -> None:
        """Sends a STOP until it has surely met the running turn, if there is one: it can overtake the turn's request,
        and then there is nothing to stop yet."""
        turn = self._running
        while True:
            has_begun = turn is None or turn.has_begun
            with suppress(RequestRefusedError, SessionLostError):  # it ended by itself
                self._connection.command(inputs)
            if has_begun or turn.is_over.wait(STOP_RETRY_S):
                return

    def _finish_early(self, text: str, answer: str, turn: RunningTurn, parts: Generator[Increment, None, None]) -> None:
        """The caller has left its loop: stops the turn and reads how far it came. If that fails, the turn is not
        recorded, and the next one makes the server forget it."""
        with suppress(ChatError):
            self.cancel()
            for part in parts:
                answer += part.text
                if part.finish_reason is not None:
                    turn.conversation.record(text, answer, part)

    @contextmanager
    def _turn(self) -> Generator[RunningTurn, None, None]:
        turn = RunningTurn(self._conversation)
        with self._lock:
            if self._running is not None:
                raise RequestRefusedError(f"session {self.id} is answering; cancel() that turn or wait for its end")
            self._running = turn
        try:
            yield turn
        finally:
            self._running = None
            turn.is_over.set()
