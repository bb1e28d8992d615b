"""Tab: what one browser tab shows of its chat, over one session of its own.

Owns the messages as they are shown, the session on the server, and the speed shown under the answer. Knows nothing of
Gradio: page.py shows the Views that it yields, and tests drive it with a fake client."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from client import ChatClient, ChatError, Increment, SessionLostError

SHOW_EVERY_S = 0.04  # A page redrawn 25 times a second reads as a stream; a fast server sends far more parts than that.


@dataclass(frozen=True, slots=True)
class Settings:
    """What the page's controls say. max_new_tokens and top_k of 0 mean no limit; an empty system prompt is none."""

    system: str = ""
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0
    max_new_tokens: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # user or assistant
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of the last turn, as its last part reported them; None before the first part."""

    num_completion_tokens: int
    num_cached_tokens: int
    num_session_tokens: int
    session_len: int | None  # None where the server does not say
    tokens_per_s: float | None  # None until there are two parts to measure between
    finish_reason: str | None  # None while the answer goes on


@dataclass(frozen=True, slots=True)
class View:
    """Everything a page needs to show a chat at one moment."""

    messages: tuple[Message, ...] = ()
    is_answering: bool = False
    usage: Usage | None = None
    problem: str = ""  # why the last turn failed, one line for the user


class Tab:
    """One chat, one turn at a time: a second one asked meanwhile yields nothing. Any thread may call any method."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._session = client.session()
        self._turn = threading.Lock()
        self._is_closed = False
        self._is_kept = True  # the session holds every turn shown; not so after one that failed
        self.view = View()

    def ask(self, prompt: str, settings: Settings) -> Iterator[View]:
        """Streams the answer to a prompt as Views of the whole chat, the last one with is_answering False.

        A blank prompt yields nothing. A failure is a View with its problem; what had arrived is shown until the next
        turn, for the session does not hold it."""
        if not prompt.strip() or not self._turn.acquire(blocking=False):
            return
        try:
            yield from self._answer(self.view.messages if self._is_kept else self.view.messages[:-2], prompt, settings)
        finally:
            self._turn.release()

    def retry(self, settings: Settings) -> Iterator[View]:
        """Takes back the last turn, here and in the session, and streams another answer to its prompt."""
        if not self.view.messages or not self._turn.acquire(blocking=False):
            return
        try:
            if self._is_kept:
                self._session.undo()
            yield from self._answer(self.view.messages[:-2], self.view.messages[-2].text, settings)
        finally:
            self._turn.release()

    def cancel(self) -> None:
        """Stops the running answer on the server; its stream then ends with what there is. Raises ChatError."""
        if self.view.is_answering:
            self._session.cancel()

    def close(self) -> None:
        """Ends the session on the server, stopping its answer if one is running. The tab yields no more."""
        self._is_closed = True
        with contextlib.suppress(ChatError):  # A server that is away forgets the session by itself.
            self._session.end()

    def _answer(self, before: tuple[Message, ...], prompt: str, settings: Settings) -> Iterator[View]:
        question = (*before, Message("user", prompt))
        self._is_kept = False
        yield self._show((*question, Message("assistant", "")), is_answering=True)
        text, usage, problem = "", None, ""
        speed, session_len, shown_s = Speed(), self._session_len(), 0.0
        try:
            for part in self._parts(prompt, settings, is_first=not before):
                if self._is_closed:
                    return
                text += part.text
                self._is_kept = part.finish_reason is not None
                usage = Usage(part.num_completion_tokens, part.num_cached_tokens, part.num_session_tokens, session_len,
                              speed.after(part.num_completion_tokens), part.finish_reason)
                if time.monotonic() - shown_s >= SHOW_EVERY_S:
                    shown_s = time.monotonic()
                    yield self._show((*question, Message("assistant", text)), is_answering=True, usage=usage)
        except ChatError as error:
            problem = str(error)
        if not self._is_closed:
            yield self._show((*question, Message("assistant", text)), usage=usage, problem=problem)

    def _parts(self, prompt: str, settings: Settings, is_first: bool) -> Iterator[Increment]:
        """The session's stream. A server that lost the session, by a restart, say, is told the chat again."""
        options = {
            "system": settings.system.strip() if is_first else None,  # A session keeps the one it began with.
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "max_new_tokens": settings.max_new_tokens or None,
            "repetition_penalty": settings.repetition_penalty,
        }
        try:
            yield from self._session.stream(prompt, **options)
        except SessionLostError:
            self._session.resume()
            yield from self._session.stream(prompt, **options)

    def _session_len(self) -> int | None:
        """Asked again with each turn: a server that comes back may have been started with another."""
        try:
            return self._client.server_info().session_len
        except ChatError:
            return None

    def _show(self, messages: tuple[Message, ...], is_answering: bool = False, usage: Usage | None = None,
              problem: str = "") -> View:
        self.view = View(messages, is_answering, usage, problem)
        return self.view


class Speed:
    """Tokens per second since the first part, so that reading the prompt does not count."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def after(self, num_tokens: int) -> float | None:
        now_s = time.monotonic()
        if self._first is None:
            self._first = (num_tokens, now_s)
        later_tokens, later_s = num_tokens - self._first[0], now_s - self._first[1]
        return later_tokens / later_s if later_tokens > 0 and later_s > 0 else None
