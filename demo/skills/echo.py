"""Echo: repeat what the user says, word for word, made-up words and any characters included.

Teaches copying, which recall and tool calls build on. Used by corpus.py; checked through the kind "one_of"."""

from __future__ import annotations

import random

from demo.chance import chance, made_up_code, made_up_word, number
from demo.conversation import Exchange, exchange
from demo.skills.animals import ANIMALS
from demo.skills.words import NAMES, NAMES_ZH, PLACES

_ASK = {
    "en": ("Repeat after me: {x}", "Say this again: {x}", "Please repeat: {x}", "Say: {x}"),
    "zh": ("跟我说：{x}", "请重复：{x}", "重复一遍：{x}"),
}
# Scripts that the vocabulary does not hold, so that bytes are copied too.
RARE = "äöüßéèñçøåßабвгдежзиклмнопрстуαβγδεζηθλμπσφψωあいうえおかきくけこさしすせそ한국어사람😀🎉🚀🐱€£¥°±龘麒麟饕餮"


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A text to repeat and the same text."""
    text = " ".join(_word(rng, language) for _ in range(rng.randint(1, 8)))
    question = rng.choice(_ASK[language]).format(x=text)
    return exchange(question, text, {"kind": "one_of", "values": [text]})


def _word(rng: random.Random, language: str) -> str:
    kind = rng.randrange(8)
    if kind == 0:
        return str(number(rng))
    if kind == 1:
        return made_up_code(rng)
    if kind == 2 and chance(rng, 0.5):
        return "".join(rng.choice(RARE) for _ in range(rng.randint(1, 4)))
    if kind < 5:
        return made_up_word(rng)
    if language == "zh":
        return rng.choice((rng.choice(NAMES_ZH), rng.choice(ANIMALS).name_zh, rng.choice(ANIMALS).food_zh))
    return rng.choice((rng.choice(NAMES), rng.choice(PLACES), rng.choice(ANIMALS).name, rng.choice(ANIMALS).food))
