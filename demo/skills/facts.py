"""Facts: what animals eat, where they live, capitals, opposites and a few other things that have one answer.

Used by corpus.py; checked by checks.py through the kind "contains"."""

from __future__ import annotations

import random

from demo.chance import roughen
from demo.conversation import Exchange, exchange
from demo.skills.animals import ANIMALS

_CAPITALS = """France Paris 法国 巴黎,Germany Berlin 德国 柏林,Italy Rome 意大利 罗马,Spain Madrid 西班牙 马德里,
Portugal Lisbon 葡萄牙 里斯本,England London 英国 伦敦,Ireland Dublin 爱尔兰 都柏林,Austria Vienna 奥地利 维也纳,
Poland Warsaw 波兰 华沙,Greece Athens 希腊 雅典,Sweden Stockholm 瑞典 斯德哥尔摩,Norway Oslo 挪威 奥斯陆,
Russia Moscow 俄罗斯 莫斯科,China Beijing 中国 北京,Japan Tokyo 日本 东京,Thailand Bangkok 泰国 曼谷,
Egypt Cairo 埃及 开罗,Canada Ottawa 加拿大 渥太华,Cuba Havana 古巴 哈瓦那,Peru Lima 秘鲁 利马"""
CAPITALS = tuple(tuple(row.split()) for row in _CAPITALS.replace("\n", "").split(","))
_OPPOSITES = """hot cold 热 冷,big small 大 小,long short 长 短,fast slow 快 慢,high low 高 低,old new 旧 新,
light dark 亮 暗,wet dry 湿 干,happy sad 高兴 难过,early late 早 晚,open closed 开 关,left right 左 右,
strong weak 强 弱,rich poor 富 穷,day night 白天 黑夜,thick thin 厚 薄"""
OPPOSITES = tuple(tuple(row.split()) for row in _OPPOSITES.replace("\n", "").split(","))
_COLOURS = """grass green 草 绿色,snow white 雪 白色,coal black 煤 黑色,blood red 血 红色,milk white 牛奶 白色,
chocolate brown 巧克力 棕色"""
COLOURS = tuple(tuple(row.split()) for row in _COLOURS.replace("\n", "").split(","))

# kind -> language -> (questions, answer); {x} is asked about, {y} is the fact
_PHRASINGS = {
    "food": {
        "en": (("What does {a} eat?", "What do {a} and its family eat?", "What food does {a} like?"), "{A} likes {y}."),
        "zh": (("{x}吃什么？", "{x}喜欢吃什么？"), "{x}喜欢吃{y}。"),
    },
    "home": {
        "en": (("Where does {a} live?", "Where is the home of {a}?"), "{A} lives {y}."),
        "zh": (("{x}住在哪里？", "{x}的家在哪里？"), "{x}住在{y}。"),
    },
    "capital": {
        "en": (
            ("What is the capital of {x}?", "Which city is the capital of {x}?", "The capital of {x}?"),
            "The capital of {x} is {y}.",
        ),
        "zh": (("{x}的首都是哪里？", "{x}的首都是什么？", "哪座城市是{x}的首都？"), "{x}的首都是{y}。"),
    },
    "opposite": {
        "en": (("What is the opposite of {x}?", "Tell me the opposite of {x}."), "The opposite of {x} is {y}."),
        "zh": (("{x}的反义词是什么？", "“{x}”的反义词是什么？"), "{x}的反义词是{y}。"),
    },
    "colour": {
        "en": (("What colour is {x}?", "Which colour has {x}?"), "The colour of {x} is {y}."),
        "zh": (("{x}是什么颜色的？", "{x}是什么颜色？"), "{x}是{y}的。"),
    },
}
_KINDS = ("food", "food", "home", "home", "capital", "capital", "capital", "opposite", "opposite", "colour")
_TABLES = {"capital": CAPITALS, "opposite": OPPOSITES, "colour": COLOURS}


def make_exchange(rng: random.Random, language: str) -> Exchange:
    """A question that has one answer, and the answer."""
    kind = rng.choice(_KINDS)
    subject = ""
    if kind in ("food", "home"):
        animal = rng.choice(ANIMALS)
        english = language == "en"
        x = animal.name if english else animal.name_zh
        subject = animal.with_article
        y = getattr(animal, kind if english else f"{kind}_zh")
    else:
        row = rng.choice(_TABLES[kind])
        x, y = row[:2] if language == "en" else row[2:]
        if kind == "opposite" and rng.random() < 0.5:
            x, y = y, x
    questions, answer = _PHRASINGS[kind][language]
    slots = {"x": x, "y": y, "a": subject, "A": subject[:1].upper() + subject[1:]}
    question = rng.choice(questions).format(**slots)
    return exchange(roughen(rng, question), answer.format(**slots), {"kind": "contains", "values": [y]})
