"""Arithmetic: sums up to thirty plus thirty and products up to twelve times twelve, in words and in digits.

All operand pairs occur in training: what is held out is conversations, not pairs. What has a larger
operand is declined, because only a tool can do it.
Used by corpus.py and, for the words, by tools; checked by checks.py through the kind "contains"."""

from __future__ import annotations

import random

from demo.chance import chance, lean, number, roughen
from demo.conversation import Exchange, exchange
from demo.skills.words import split

MAX_ADDEND = 30
MAX_FACTOR = 12

_UNITS = split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = split("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
_DIGITS_ZH = "零一二三四五六七八九"

_ASK = {
    "en": (
        "What is {sum}?",
        "How much is {sum}?",
        "What does {sum} make?",
        "Can you tell me what {sum} is?",
        "{sum}?",
        "Please compute {sum}.",
        "Calculate {sum}.",
        "{sum} is how much?",
    ),
    "zh": (
        "{sum}等于多少？",
        "{sum}是多少？",
        "请算一下{sum}。",
        "{sum}等于几？",
        "你知道{sum}是多少吗？",
        "计算{sum}。",
    ),
}
_TOO_LARGE = {"en": "That is too large for me without a tool.", "zh": "这个数太大了，没有工具我算不出来。"}


def in_words(value: int, language: str) -> str:
    """The words of a whole number from 0 to 199: twenty-one, 二十一."""
    if language == "zh":
        return _in_words_zh(value)
    if value < 20:
        return _UNITS[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{_UNITS[value % 10]}" if value % 10 else "")
    return "one hundred" + (f" and {in_words(value - 100, language)}" if value > 100 else "")


def _in_words_zh(value: int) -> str:
    if value < 10:
        return _DIGITS_ZH[value]
    if value < 100:
        tens = "" if value < 20 else _DIGITS_ZH[value // 10]
        return f"{tens}十" + (_DIGITS_ZH[value % 10] if value % 10 else "")
    rest = value - 100
    if rest == 0:
        return "一百"
    if rest < 10:
        return f"一百零{_DIGITS_ZH[rest]}"
    return f"一百{'一' if rest < 20 else ''}{_in_words_zh(rest)}"


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A sum or a product and its answer; now and then one that is too large to answer."""
    is_sum = chance(rng, 0.5)
    is_large = chance(rng, 0.12)
    style = "words" if chance(rng, 0.65) and not is_large else "digits"
    limit = MAX_ADDEND if is_sum else MAX_FACTOR
    left, right = rng.randint(0, limit), rng.randint(0, limit)
    while is_large and max(left, right) <= limit:
        left, right = number(rng), number(rng)
    text = _expression(rng, left, right, is_sum, style, language)
    question = rng.choice(_ASK[language]).format(sum=text)
    question = roughen(rng, question[0].upper() + question[1:])
    if is_large:
        return exchange(question, _TOO_LARGE[language], {"kind": "contains", "values": [_TOO_LARGE[language]]})
    total = left + right if is_sum else left * right
    answer = _sentence(left, right, total, is_sum, style, language)
    return exchange(question, answer, {"kind": "contains", "values": [answer]})


def _expression(rng: random.Random, left: int, right: int, is_sum: bool, style: str, language: str) -> str:
    if style == "digits" and chance(rng, 0.5):
        sign = "+" if is_sum else lean(rng, ("*", "×"), share=0.5)
        return f"{left}{sign}{right}" if chance(rng, 0.4) else f"{left} {sign} {right}"
    return _joined(left, right, is_sum, style, language)


def _joined(left: int, right: int, is_sum: bool, style: str, language: str) -> str:
    a, b = (in_words(left, language), in_words(right, language)) if style == "words" else (str(left), str(right))
    if language == "zh":
        return f"{a}{'加' if is_sum else '乘'}{b}"
    return f"{a} {'plus' if is_sum else 'times'} {b}"


def _sentence(left: int, right: int, total: int, is_sum: bool, style: str, language: str) -> str:
    result = in_words(total, language) if style == "words" else str(total)
    text = _joined(left, right, is_sum, style, language)
    if language == "zh":
        return f"{text}等于{result}。"
    return f"{text[0].upper()}{text[1:]} is {result}."
