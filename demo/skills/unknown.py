"""Unknown: questions beyond the model, which it declines in one sentence instead of inventing an answer.

Used by corpus.py; checked by checks.py through the kind "one_of"."""

from __future__ import annotations

import random

from demo.chance import chance, made_up_word, roughen
from demo.conversation import Exchange, exchange
from demo.skills.words import NAMES, NAMES_ZH, PLACES, PLACES_ZH

ANSWER = {
    "en": "I am only a small demo model and do not know that. Ask me for a story or a small sum.",
    "zh": "我只是一个小小的演示模型，不知道这个。你可以让我讲故事或者做小算术。",
}
_QUESTIONS = {
    "en": (
        "Write a program that sorts a list.",
        "Explain {x} to me.",
        "Who won the {x} cup?",
        "What is {x}?",
        "Who is {n}?",
        "How do I repair a {x}?",
        "What is the meaning of {x}?",
        "Translate {x} into Latin.",
        "Why is {x} important?",
        "When was {n} born?",
        "How far is it to {p}?",
        "What is the best hotel in {p}?",
        "Summarise the news about {p}.",
        "How does a {x} work?",
        "What do you think about {x}?",
        "{x} {y}",
        "Write an essay about {x}.",
        "{x}?",
        "Give me a recipe with {x}.",
        "What is the difference between {x} and {y}?",
        "Prove that {x} is {y}.",
        "What happened in {p} in the year 1900?",
        "What is the price of {x}?",
        "Can you explain quantum physics?",
        "How do I invest my money?",
        "What is a transformer model?",
        "Write a poem about {p}.",
        "{p} is",
    ),
    "zh": (
        "写一个排序程序。",
        "请解释一下{x}。",
        "什么是{x}？",
        "{n}是谁？",
        "怎么修理{x}？",
        "{x}为什么重要？",
        "{n}是哪年出生的？",
        "{p}有多远？",
        "{p}最好的酒店是哪家？",
        "总结一下{p}的新闻。",
        "{x}是怎么工作的？",
        "你怎么看{x}？",
        "写一篇关于{x}的文章。",
        "{x}和{y}有什么区别？",
        "{p}在1900年发生了什么？",
        "{x}多少钱？",
        "什么是量子物理？",
        "怎么投资？",
        "写一首关于{p}的诗。",
        "{p}是",
    ),
}
_TOPICS = {
    "en": (
        "gravity",
        "democracy",
        "photosynthesis",
        "a computer",
        "inflation",
        "chess",
        "the stock market",
        "philosophy",
        "electricity",
        "machine learning",
        "football",
        "an engine",
        "the internet",
        "history",
        "poetry",
        "a black hole",
    ),
    "zh": (
        "引力",
        "民主",
        "光合作用",
        "电脑",
        "通货膨胀",
        "象棋",
        "股市",
        "哲学",
        "电",
        "机器学习",
        "足球",
        "发动机",
        "互联网",
        "历史",
        "黑洞",
    ),
}


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A question about the wide world, and the one answer to all of them."""
    english = language == "en"
    question = rng.choice(_QUESTIONS[language]).format(
        x=_topic(rng, language),
        y=_topic(rng, language),
        n=rng.choice(NAMES if english else NAMES_ZH),
        p=rng.choice(PLACES if english else PLACES_ZH),
    )
    answer = ANSWER[language]
    return exchange(roughen(rng, question), answer, {"kind": "one_of", "values": [answer]})


def _topic(rng: random.Random, language: str) -> str:
    return made_up_word(rng) if chance(rng, 0.4) else rng.choice(_TOPICS[language])
