"""Conversations: the values that every skill makes, the trainer reads and the evaluation checks.

Owns the shape of a message, a conversation and a check. Knows no skill and no tokenizer.
Used by every module of demo/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Tool = dict[str, Any]  # {"name", "description", "parameters"}: a function's JSON schema
Check = dict[str, Any]  # {"kind", ...}: plain data from which checks.is_correct judges an answer


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, user, assistant or environment (a tool's result)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a skill adds to a conversation: messages that end with the assistant's, and the check of that answer."""

    messages: tuple[Message, ...]
    check: Check


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation; `check` judges its last message, the assistant's."""

    skill: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    check: Check

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the checked answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The checked answer as the corpus has it."""
        return self.messages[-1].content


def exchange(question: str, answer: str, check: Check) -> Exchange:
    """One question and one answer."""
    return Exchange((Message("user", question), Message("assistant", answer)), check)


def as_dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages in the form that chat templates and OpenAI clients take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_jsonl(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write one conversation per line."""
    with path.open("w", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(json.dumps(asdict(conversation), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[Conversation]:
    """Read what `write_jsonl` wrote."""
    conversations = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        messages = tuple(Message(**message) for message in record["messages"])
        conversations.append(Conversation(record["skill"], messages, tuple(record["tools"]), record["check"]))
    return conversations
