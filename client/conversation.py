"""Conversation: what this client knows of a session, and so what it has to send for the next turn.

Owns the history and how many tokens of it the server holds. No connection, no threads: the sessions, sync and async,
share it. Each turn after the first tells the server how many tokens to keep (STEP): so a turn that failed half-way, or
one taken back, leaves no trace, and a server that lost the session says so instead of answering out of context."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from client.errors import RequestRefusedError
from client.wire import Increment


@dataclass(frozen=True, slots=True)
class Turn:
    """num_tokens_before  what the server's session held before the question; None: unknown, it was begun anew"""

    question: str
    answer: str
    num_tokens_before: int | None


class Conversation:
    """One session's turns.

    num_tokens  what the server holds of them; None: unknown, so the next turn tells it everything
    tells_all   each turn does, because the model's template wants it"""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.system: str | None = None
        self.num_tokens: int | None = None
        self.tells_all = False

    def next_inputs(self, question: str, system: str | None) -> dict[str, Any]:
        """The tensors with which the server can answer the question.

        Raises RequestRefusedError where `system` is not the one that the conversation began with."""
        if system is not None and self.turns and system != self.system:
            raise RequestRefusedError("a system message begins a conversation, and this one has begun with another; "
                                      "end() it first")
        if not self.turns:
            self.system = system if system is not None else self.system
        if self.turns and self.num_tokens is not None and not self.tells_all:
            return {"PROMPT": question, "START": 0, "STEP": self.num_tokens}
        return {"MESSAGES": json.dumps(self._messages(question), ensure_ascii=False), "START": 1}

    def record(self, question: str, answer: str, last: Increment) -> None:
        """Takes up a turn that the server ended with this increment."""
        self.turns.append(Turn(question, answer, self.num_tokens))
        self.num_tokens = last.num_session_tokens

    def undo(self) -> str:
        """Forgets the last turn and returns its question. Raises RequestRefusedError if there is none."""
        if not self.turns:
            raise RequestRefusedError("the conversation has no turn to take back")
        turn = self.turns.pop()
        self.num_tokens = turn.num_tokens_before  # None for the first turn
        return turn.question

    def begin_anew(self) -> None:
        """What the server held is gone, or counts no more: the next turn tells it everything."""
        self.num_tokens = None
        self.turns = [replace(turn, num_tokens_before=None) for turn in self.turns]

    def _messages(self, question: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return [*messages, {"role": "user", "content": question}]
