"""Recall: remember what the user told in an earlier turn, and admit what was not told.

Owns the kinds of facts, how they are told, acknowledged and asked for. Which turns lie between is corpus.py's
choice. Checked by checks.py through the kind "contains": the told value, or the sentence that says it was not told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo.chance import chance, lean, made_up_code, made_up_word, number
from demo.conversation import Exchange, exchange
from demo.skills import words
from demo.skills.animals import ANIMALS


@dataclass(frozen=True, slots=True)
class Fact:
    """A kind of fact in one language; {v} is its value. `asks[i]` and all `answers` fit each other."""

    tells: tuple[str, ...]
    acknowledgements: tuple[str, ...]
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    not_told: str
    values: Callable[[random.Random], str]


def _any_of(known: list[str] | tuple[str, ...], made_up_share: float = 0.0) -> Callable[[random.Random], str]:
    def draw(rng: random.Random) -> str:
        return made_up_word(rng).capitalize() if chance(rng, made_up_share) else rng.choice(known)

    return draw


def _number(rng: random.Random) -> str:
    return str(number(rng))


def _favourite(word: str, values: Callable[[random.Random], str]) -> Fact:
    return Fact(
        (
            f"My favourite {word} is {{v}}.",
            f"By the way, my favourite {word} is {{v}}.",
            f"The {word} I like best is {{v}}.",
            f"Remember that my favourite {word} is {{v}}.",
        ),
        (f"Got it, your favourite {word} is {{v}}.", "I will remember {v}."),
        (
            f"What is my favourite {word}?",
            f"Which {word} do I like best?",
            f"Do you remember my favourite {word}?",
            f"Tell me my favourite {word}.",
        ),
        (f"Your favourite {word} is {{v}}.",),
        f"You have not told me your favourite {word} yet.",
        values,
    )


def _favourite_zh(word: str, values: Callable[[random.Random], str]) -> Fact:
    return Fact(
        (f"我最喜欢的{word}是{{v}}。", f"对了，我最喜欢的{word}是{{v}}。", f"请记住，我最喜欢的{word}是{{v}}。"),
        (f"好的，你最喜欢的{word}是{{v}}。", "我会记住{v}。"),
        (f"我最喜欢的{word}是什么？", f"你还记得我最喜欢的{word}吗？", f"告诉我，我最喜欢的{word}是什么？"),
        (f"你最喜欢的{word}是{{v}}。",),
        f"你还没有告诉我你最喜欢的{word}。",
        values,
    )


FACTS: dict[str, dict[str, Fact]] = {
    "en": {
        "name": Fact(
            (
                "My name is {v}.",
                "Hello, my name is {v}.",
                "I am called {v}.",
                "Hi, I am {v}.",
                "You can call me {v}.",
                "Please remember that my name is {v}.",
                "Hi! My name is {v}. Nice to meet you.",
            ),
            ("Nice to meet you, {v}!", "Hello {v}, nice to meet you!"),
            (
                "What is my name?",
                "Do you remember my name?",
                "Who am I?",
                "What am I called?",
                "Can you tell me my name?",
                "What's my name?",
                "Say my name.",
                "What was my name again?",
            ),
            ("Your name is {v}.",),
            "You have not told me your name yet.",
            _any_of(words.NAMES, 0.25),
        ),
        "number": Fact(
            (
                "My favourite number is {v}.",
                "My lucky number is {v}.",
                "Please remember the number {v}.",
                "The number is {v}.",
                "Keep the number {v} in mind.",
                "Remember this number: {v}.",
            ),
            ("I will remember the number {v}.", "Got it, the number is {v}."),
            (
                "What is my favourite number?",
                "What is my lucky number?",
                "Which number did I tell you?",
                "What was the number?",
                "What number should you remember?",
                "Do you remember the number?",
                "What number did I say?",
            ),
            ("The number is {v}.",),
            "You have not told me a number yet.",
            _number,
        ),
        "colour": _favourite("colour", _any_of(words.COLOURS)),
        "color": _favourite("color", _any_of(words.COLOURS)),
        "food": _favourite("food", _any_of(words.FOODS)),
        "animal": _favourite("animal", _any_of([animal.name for animal in ANIMALS])),
        "city": Fact(
            ("I live in {v}.", "I come from {v}.", "My home town is {v}.", "I am from {v}."),
            ("{v} is a lovely place!", "Got it, you live in {v}."),
            ("Where do I live?", "Where do I come from?", "What is my home town?", "Which city am I from?"),
            ("You live in {v}.",),
            "You have not told me where you live.",
            _any_of(words.PLACES, 0.2),
        ),
        "pet": Fact(
            ("My dog is called {v}.", "I have a dog called {v}.", "My dog's name is {v}."),
            ("{v} is a nice name for a dog!", "Got it, your dog is called {v}."),
            ("What is my dog called?", "What is the name of my dog?", "Do you remember my dog's name?"),
            ("Your dog is called {v}.",),
            "You have not told me about your dog yet.",
            _any_of(words.NAMES, 0.5),
        ),
        "job": Fact(
            ("I work as a {v}.", "My job is {v}.", "I am a {v} by profession."),
            ("That sounds interesting!", "Got it, you work as a {v}."),
            ("What is my job?", "What do I work as?", "Do you remember my job?"),
            ("Your job is {v}.",),
            "You have not told me your job yet.",
            _any_of(words.JOBS),
        ),
        "code": Fact(
            ("The secret code is {v}.", "Remember the code {v}.", "My password is {v}.", "The secret word is {v}."),
            ("I will remember {v}.", "Got it, the code is {v}."),
            (
                "What is the secret code?",
                "What was the code?",
                "Do you remember the code?",
                "What is my password?",
                "What is the secret word?",
            ),
            ("The code is {v}.",),
            "You have not told me a code yet.",
            lambda rng: made_up_code(rng) if chance(rng, 0.6) else made_up_word(rng),
        ),
        "age": Fact(
            ("I am {v} years old.", "My age is {v}.", "I turned {v} this year."),
            ("Got it, you are {v} years old.",),
            ("How old am I?", "What is my age?", "Do you remember how old I am?"),
            ("You are {v} years old.",),
            "You have not told me your age yet.",
            lambda rng: str(rng.randint(4, 99)),
        ),
    },
    "zh": {
        "name": Fact(
            (
                "我叫{v}。",
                "你好，我叫{v}。",
                "我的名字是{v}。",
                "请记住，我叫{v}。",
                "你可以叫我{v}。",
                "你好，我是{v}。",
            ),
            ("很高兴认识你，{v}！", "你好，{v}！很高兴认识你。"),
            ("我叫什么名字？", "你还记得我的名字吗？", "我是谁？", "我的名字是什么？", "我叫什么？"),
            ("你叫{v}。",),
            "你还没有告诉我你的名字。",
            lambda rng: made_up_word(rng).capitalize() if chance(rng, 0.15) else rng.choice(words.NAMES_ZH),
        ),
        "number": Fact(
            ("我最喜欢的数字是{v}。", "我的幸运数字是{v}。", "请记住数字{v}。", "数字是{v}。", "记住这个数字：{v}。"),
            ("我会记住数字{v}。", "好的，数字是{v}。"),
            (
                "我最喜欢的数字是什么？",
                "我的幸运数字是多少？",
                "我说的数字是多少？",
                "数字是多少？",
                "你还记得那个数字吗？",
            ),
            ("数字是{v}。",),
            "你还没有告诉我数字。",
            _number,
        ),
        "colour": _favourite_zh("颜色", _any_of(words.COLOURS_ZH)),
        "food": _favourite_zh("食物", _any_of(words.FOODS_ZH)),
        "animal": _favourite_zh("动物", _any_of([animal.name_zh for animal in ANIMALS])),
        "city": Fact(
            ("我住在{v}。", "我来自{v}。", "我的家乡是{v}。", "我是{v}人。"),
            ("{v}是个好地方！", "好的，你住在{v}。"),
            ("我住在哪里？", "我来自哪里？", "我的家乡是哪里？", "你还记得我住在哪里吗？"),
            ("你住在{v}。",),
            "你还没有告诉我你住在哪里。",
            _any_of(words.PLACES_ZH, 0.1),
        ),
        "pet": Fact(
            ("我的狗叫{v}。", "我有一只狗，叫{v}。"),
            ("{v}是个好名字！", "好的，你的狗叫{v}。"),
            ("我的狗叫什么？", "你还记得我的狗的名字吗？", "我的狗叫什么名字？"),
            ("你的狗叫{v}。",),
            "你还没有告诉我你的狗叫什么。",
            _any_of(words.NAMES_ZH, 0.2),
        ),
        "job": Fact(
            ("我是一名{v}。", "我的工作是{v}。", "我的职业是{v}。"),
            ("听起来很有意思！", "好的，你是一名{v}。"),
            ("我的工作是什么？", "我是做什么的？", "你还记得我的职业吗？"),
            ("你的工作是{v}。",),
            "你还没有告诉我你的工作。",
            _any_of(words.JOBS_ZH),
        ),
        "code": Fact(
            ("密码是{v}。", "请记住密码{v}。", "我的暗号是{v}。"),
            ("我会记住{v}。", "好的，密码是{v}。"),
            ("密码是什么？", "密码是多少？", "你还记得密码吗？", "我的暗号是什么？"),
            ("密码是{v}。",),
            "你还没有告诉我密码。",
            lambda rng: made_up_code(rng) if chance(rng, 0.6) else made_up_word(rng),
        ),
        "age": Fact(
            ("我今年{v}岁。", "我{v}岁了。"),
            ("好的，你{v}岁了。",),
            ("我几岁了？", "我今年多大？", "你还记得我的年龄吗？"),
            ("你{v}岁了。",),
            "你还没有告诉我你的年龄。",
            lambda rng: str(rng.randint(4, 99)),
        ),
    },
}
_ACKNOWLEDGE_TWO = {"en": "Nice to meet you, {v}! I will remember both.", "zh": "很高兴认识你，{v}！我会记住这些。"}
_SAME_KIND = {"color": "colour"}  # told as a colour, asked as a color


def tell(rng: random.Random, language: str, kind: str) -> tuple[str, Exchange]:
    """A turn in which the user tells a fact of that kind; returns the value told and the turn."""
    fact = FACTS[language][kind]
    value = fact.values(rng)
    question = rng.choice(fact.tells).format(v=value)
    answer = lean(rng, fact.acknowledgements).format(v=value)
    accepted = [text.format(v=value) for text in fact.acknowledgements]
    return value, exchange(question, answer, {"kind": "one_of", "values": accepted})


def tell_two(rng: random.Random, language: str, kind: str) -> tuple[str, str, Exchange]:
    """A turn in which the user tells the name and another fact; returns both values and the turn."""
    name, fact = FACTS[language]["name"], FACTS[language][kind]
    values = name.values(rng), fact.values(rng)
    first, second = (rng.choice(f.tells[:4]).format(v=value) for f, value in zip((name, fact), values, strict=True))
    joint = " and " if language == "en" else "，"
    question = first.rstrip(".。") + joint + (second[0].lower() + second[1:] if second[:2] != "I " else second)
    answer = _ACKNOWLEDGE_TWO[language].format(v=values[0])
    return *values, exchange(question, answer, {"kind": "one_of", "values": [answer]})


def ask(rng: random.Random, language: str, kind: str, value: str | None) -> Exchange:
    """A turn in which the user asks for a fact; `value` is None where it was not told."""
    fact = FACTS[language][kind]
    answer = fact.not_told if value is None else lean(rng, fact.answers).format(v=value)
    return exchange(rng.choice(fact.asks), answer, {"kind": "contains", "values": [answer if value is None else value]})


def same_kind(kind: str) -> str:
    """The kind under which a told value is remembered (colour and color are one)."""
    return _SAME_KIND.get(kind, kind)
