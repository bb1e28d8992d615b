"""A client that answers by itself, for tests of the web UI: ChatClient's interface, with every call written down.

A prompt that contains "long" is answered without end, until it is cancelled; any other by a short text in markdown."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from client import Increment, ServerAwayError, ServerInfo, SessionLostError

AWAY = "127.0.0.1:33337 does not answer; check the address, or start the server"
SESSION_LEN = 2048


class FakeClient:
    """`is_away`: every call fails. `word_every_s`: how fast it answers."""

    def __init__(self, word_every_s: float = 0.0) -> None:
        self.sessions: list[FakeSession] = []
        self.word_every_s = word_every_s
        self.is_away = False
        self.num_answers = 0

    def check(self) -> None:
        if self.is_away:
            raise ServerAwayError(AWAY)

    def is_ready(self) -> bool:
        return not self.is_away

    def server_info(self) -> ServerInfo:
        self.check()
        return ServerInfo("fake", "internlm2-demo", SESSION_LEN)

    def session(self, session_id: int | None = None) -> FakeSession:
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]


class FakeSession:
    """turns    (prompt, answer) that the session holds: those that ended, cancelled ones too
    options  of each stream, in order
    is_lost  the server has forgotten the session, until resume()"""

    def __init__(self, client: FakeClient) -> None:
        self._client = client
        self._is_stopped = threading.Event()
        self.turns: list[tuple[str, str]] = []
        self.options: list[dict[str, object]] = []
        self.is_lost = self.is_ended = False

    def stream(self, prompt: str, **options: object) -> Iterator[Increment]:
        self._client.check()
        if self.is_lost:
            raise SessionLostError("session 7 is not known")
        self._is_stopped.clear()
        self.options.append(options)
        self._client.num_answers += 1
        num_cached, answer = self._num_tokens(), ""
        for count, (word, reason) in enumerate(self._words(prompt), start=1):
            if self._is_stopped.wait(self._client.word_every_s):
                word, reason = "", "abort"
            self._client.check()
            answer += word
            num_prompt = num_cached + len(prompt.split())
            if reason:
                self.turns.append((prompt, answer))
            yield Increment(word, reason, num_prompt, num_cached, count, num_prompt + count)
            if reason:
                return

    def cancel(self) -> None:
        self._client.check()
        self._is_stopped.set()

    def undo(self) -> str:
        return self.turns.pop()[0]

    def resume(self) -> None:
        self.is_lost = False

    def end(self) -> None:
        self._is_stopped.set()
        self._client.check()
        self.is_ended = True

    def _words(self, prompt: str) -> Iterator[tuple[str, str | None]]:
        """(word, finish_reason) of the answer."""
        if "long" in prompt:
            yield from ((f"word{count} ", None) for count in itertools.count(1))
        *words, last = f"Answer {self._client.num_answers} to **{prompt}** in turn {len(self.turns) + 1}".split(" ")
        yield from ((word + " ", None) for word in words)
        yield last, "stop"

    def _num_tokens(self) -> int:
        return sum(len(text.split()) for turn in self.turns for text in turn)
