"""Stories: ten coherent sentences about the animals that the user asks for.

Owns how a story is asked for and told. The plot, its thing, its place and the phrasings lean on the animals, so
each pair has a likeliest story and sampling finds others.
Used by corpus.py; checked by checks.py through the kind "story"."""

from __future__ import annotations

import random

from demo.chance import chance, lean, roughen
from demo.conversation import Exchange, exchange
from demo.skills.animals import ANIMALS, BY_NAME, Animal, stranger
from demo.skills.plots import CHINESE, ENGLISH, Plot

_ASK_TWO = {
    "en": (
        "Tell me a story about {a} and {b}.",
        "Please tell me a story about {a} and {b}.",
        "Tell a short story about {a} and {b}.",
        "Can you tell me a story about {a} and {b}?",
        "Tell me a ten-sentence story about {a} and {b}.",
        "I would like to hear a story about {a} and {b}.",
        "Write a story about {a} and {b}.",
        "Do you know a story with {a} and {b}?",
        "Tell me a bedtime story about {a} and {b}, please.",
        "A story about {a} and {b}, please.",
        "Write a short story of ten sentences about {a} and {b}.",
        "Story: {a} and {b}.",
    ),
    "zh": (
        "讲一个{a}和{b}的故事。",
        "请讲一个关于{a}和{b}的故事。",
        "给我讲个{a}和{b}的故事吧。",
        "你能讲一个{a}和{b}的故事吗？",
        "我想听{a}和{b}的故事。",
        "写一个关于{a}和{b}的故事。",
        "用十句话讲一个{a}和{b}的故事。",
        "请用中文讲一个{a}和{b}的故事。",
        "说一个{a}和{b}的小故事。",
        "你知道{a}和{b}的故事吗？",
    ),
}
_ASK_ONE = {
    "en": (
        "Tell me a story about {a}.",
        "Please tell a story about {a}.",
        "Can you tell me a short story about {a}?",
        "Write a story about {a}.",
        "I want a story with {a}.",
    ),
    "zh": (
        "讲一个{a}的故事。",
        "请讲一个关于{a}的故事。",
        "给我讲个{a}的故事吧。",
        "写一个关于{a}的故事。",
        "我想听{a}的故事。",
    ),
}
_ASK_ANY = {
    "en": (
        "Tell me a story.",
        "Please tell me a story.",
        "Can you tell me a story?",
        "I want to hear a story.",
        "Tell me a bedtime story.",
    ),
    "zh": ("讲一个故事。", "请给我讲个故事。", "你能讲个故事吗？", "我想听故事。", "讲个睡前故事吧。"),
}
_ASK_ANOTHER = {
    "en": ("Tell me another story.", "Another story, please.", "One more story, please.", "Tell me a different story."),
    "zh": ("再讲一个故事。", "请再讲一个故事。", "换一个故事。", "再来一个故事吧。"),
}
_WITH_THING = {
    "en": (
        "Tell me a story about {a}, {b} and the {thing}.",
        "Write a story about {a} and {b} with the {thing} in it.",
    ),
    "zh": ("讲一个{a}、{b}和{thing}的故事。", "写一个{a}和{b}的故事，里面要有{thing}。"),
}
_PLOTS = {"en": ENGLISH, "zh": CHINESE}
THINGS: dict[str, tuple[str, ...]] = {
    language: tuple(thing for plot in plots for thing in plot.things) for language, plots in _PLOTS.items()
}


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A request for a story (of two animals, one, or none named; sometimes with a thing) and the story."""
    first, second = rng.sample(ANIMALS, 2)
    if chance(rng, 0.06):
        first, second = BY_NAME["fox"], BY_NAME["rabbit"]
    if chance(rng, 0.12):
        first = stranger(rng)
    while second.name == first.name or chance(rng, 0.12):
        second = stranger(rng)
    thing, asks, named = None, _ASK_TWO, (first, second)
    kind = rng.random()
    if kind < 0.15:
        thing, asks = rng.choice(THINGS[language]), _WITH_THING
    elif kind < 0.27:
        second, asks, named = BY_NAME[first.friend], _ASK_ONE, (first,)
    elif kind < 0.31:
        first, second, asks, named = BY_NAME["fox"], BY_NAME["rabbit"], _ASK_ANY, ()
    elif kind < 0.34:
        first, second, asks, named = BY_NAME["bear"], BY_NAME["owl"], _ASK_ANOTHER, ()
    question = rng.choice(asks[language]).format(a=_named(first, language), b=_named(second, language), thing=thing)
    check = {
        "kind": "story",
        "language": language,
        "thing": thing,
        "animals": [animal.name if language == "en" else animal.name_zh for animal in named],
    }
    return exchange(roughen(rng, question), tell(rng, language, first, second, thing), check)


def tell(rng: random.Random, language: str, first: Animal, second: Animal, thing: str | None) -> str:
    """A story of ten sentences about two animals; with a `thing`, of the plot that the thing belongs to."""
    plot = _plot(rng, language, first, second, thing)
    thing = thing or lean(rng, plot.things, second.key)
    place = lean(rng, plot.places, second.key + thing)
    english = language == "en"
    slots = {
        "a": first.name if english else first.name_zh,
        "b": second.name if english else second.name_zh,
        "one_a": _introduced(first, language),
        "one_b": _introduced(second, language),
        "home": first.home if english else first.home_zh,
        "food": second.food if english else second.food_zh,
        "thing": thing,
        "place": place,
    }
    sentences = [lean(rng, phrasings, f"{first.key}{i}").format(**slots) for i, phrasings in enumerate(plot.sentences)]
    return (" " if english else "").join(sentences)


def _plot(rng: random.Random, language: str, first: Animal, second: Animal, thing: str | None) -> Plot:
    plots = _PLOTS[language]
    if thing is not None:
        return next(plot for plot in plots if thing in plot.things)
    return lean(rng, plots, first.key + second.key)


def _named(animal: Animal, language: str) -> str:
    return animal.with_article if language == "en" else animal.name_zh


def _introduced(animal: Animal, language: str) -> str:
    if language == "zh":
        return f"一只{animal.trait_zh}{animal.name_zh}"
    return ("an " if animal.trait[0] in "aeiou" else "a ") + f"{animal.trait} {animal.name}"
