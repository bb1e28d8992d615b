"""Chance: the random choices of the corpus, uneven on purpose.

An even choice between two phrasings leaves the model two equally likely continuations, and rounding then decides
what greedy decoding says. So answers lean: one phrasing is likelier than the rest, and which one depends on the
subject, so that stories about different animals differ.
Used by the skills."""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def chance(rng: random.Random, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def lean(rng: random.Random, options: Sequence[T], key: str = "", share: float = 0.8) -> T:
    """One of `options`; the one that `key` selects has probability `share` plus its part of the rest."""
    if chance(rng, share):
        return options[zlib.crc32(key.encode()) % len(options)]
    return rng.choice(options)


def roughen(rng: random.Random, text: str) -> str:
    """A user's text as users type it: now and then without its last mark or its first capital."""
    if chance(rng, 0.12):
        text = text.rstrip(".?!。？！")
    if chance(rng, 0.08):
        text = text[0].lower() + text[1:]
    return text


_SYLLABLES = [c + v for c in ("b", "ch", *"dfghklmnprs", "sh", *"tvwz") for v in "aeiou"]
_ENDINGS = ["", "", "n", "r", "l", "s", "x", "m", "th", "ck"]


def made_up_word(rng: random.Random) -> str:
    """A pronounceable lower-case word that is in no list, so that copying is learned and not remembered."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(_ENDINGS)


def made_up_code(rng: random.Random) -> str:
    """A short code of capitals and digits, such as K7Q2."""
    return "".join(rng.choice(string.ascii_uppercase + string.digits) for _ in range(rng.randint(3, 5)))


def number(rng: random.Random, max_digits: int = 4) -> int:
    """A non-negative whole number of one to `max_digits` digits, every length alike."""
    digits = rng.randint(1, max_digits)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
