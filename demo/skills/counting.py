"""Counting: from one number to another, the longest answers that have only one right text.

Used by corpus.py; checked by checks.py through the kind "one_of"."""

from __future__ import annotations

import random

from demo.chance import chance, roughen
from demo.conversation import Exchange, exchange

MAX_NUMBER = 120

_ASK = {
    "en": (
        "Count from {a} to {b}.",
        "Please count from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Count up from {a} to {b}, please.",
    ),
    "zh": ("从{a}数到{b}。", "请从{a}数到{b}。", "你能从{a}数到{b}吗？"),
}


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A request to count and the numbers, in digits, separated by commas."""
    start = 1 if chance(rng, 0.5) else rng.randint(0, 90)
    end = min(MAX_NUMBER, start + (rng.randint(40, 110) if chance(rng, 0.15) else rng.randint(2, 30)))
    question = rng.choice(_ASK[language]).format(a=start, b=end)
    answer = ", ".join(str(value) for value in range(start, end + 1))
    return exchange(roughen(rng, question), answer, {"kind": "one_of", "values": [answer]})
