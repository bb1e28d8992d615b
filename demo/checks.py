"""Checks: whether an answer is right, judged from the plain data that the corpus put beside the conversation.

Used by evaluate.py and by tests; any text that a model generated can be judged."""

from __future__ import annotations

import re

from demo.conversation import Check
from demo.skills.animals import ANIMALS
from demo.skills.stories import THINGS
from demo.skills.tools import parse_call

NUM_SENTENCES = 10


def is_correct(check: Check, answer: str) -> bool:
    """True if `answer` (the assistant's text, special tokens of a tool call included) satisfies `check`.

    Kinds: one_of (the whole text is one of `values`), contains (holds every one of `values`; a number only where no
    digit touches it), tool_call (a well-formed call that equals `call`), story (see `is_story`).
    Raises ValueError for another kind."""
    kind = check["kind"]
    if kind == "one_of":
        return answer in check["values"]
    if kind == "contains":
        return all(_holds(answer, value) for value in check["values"])
    if kind == "tool_call":
        return parse_call(answer) == check["call"]
    if kind == "story":
        return is_story(answer, check["language"], check["animals"], check["thing"])
    raise ValueError(f"check kind {kind!r} is unknown; the kinds are one_of, contains, tool_call, story")


def is_story(text: str, language: str, animals: list[str], thing: str | None) -> bool:
    """True for ten different sentences about the animals asked for, and one thing that stays the same.

    Two take part, each in three sentences or more, and those named in `animals` are among them. Exactly one
    of the plots' things is named, in two sentences or more, and it is `thing` where one was asked for."""
    stop = "." if language == "en" else "。"
    sentences = [sentence.strip() for sentence in text.split(stop)]
    if (
        len(sentences) != NUM_SENTENCES + 1
        or len(set(sentences)) != len(sentences)
        or sentences[-1] not in ("", '"', "”")
    ):
        return False
    names = {*_animal_names(language), *animals}
    taking_part = {name: count for name in names if (count := _count(sentences, name, language))}
    things = {name: count for name in THINGS[language] if (count := _count(sentences, name, language))}
    return (
        len(taking_part) == 2
        and min(taking_part.values()) >= 3
        and set(animals) <= set(taking_part)
        and len(things) == 1
        and min(things.values()) >= 2
        and thing in (None, *things)
    )


def _animal_names(language: str) -> list[str]:
    return [animal.name if language == "en" else animal.name_zh for animal in ANIMALS]


def _count(sentences: list[str], name: str, language: str) -> int:
    """The number of sentences that hold a name, in English as a whole word."""
    pattern = re.compile(rf"\b{re.escape(name)}\b" if language == "en" else re.escape(name))
    return sum(1 for sentence in sentences if pattern.search(sentence))


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\d){re.escape(value)}(?!\d)", text) is not None
