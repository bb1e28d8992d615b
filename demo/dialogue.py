"""Dialogue: a conversation in the making, turn by turn, with the facts that its user has told so far.

Owns the language, the memory and the turns that come between. Knows which skills exist; how often each is trained
is corpus.py's. Used by corpus.py."""

from __future__ import annotations

import random

from demo.chance import chance, made_up_word
from demo.conversation import Exchange, Message
from demo.skills import arithmetic, counting, echo, facts, recall, small_talk, stories, tools, unknown
from demo.skills.tool_declaration import DeclaredTool

PLAIN_SKILLS = {
    "stories": stories.make_exchange,
    "small_talk": small_talk.make_exchange,
    "facts": facts.make_exchange,
    "arithmetic": arithmetic.make_exchange,
    "counting": counting.make_exchange,
    "echo": echo.make_exchange,
    "unknown": unknown.make_exchange,
}
_FILLERS = {
    "small_talk": 30,
    "facts": 22,
    "arithmetic": 18,
    "stories": 12,
    "echo": 4,
    "counting": 2,
    "unknown": 4,
    "recall": 20,
}
# Tools that none of the questions about the wide world could be for.
_NARROW_TOOLS = ("add", "mul", "weather", "subtract", "larger", "time", "alarm", "music", "light", "random", "order")
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "You are a helpful, honest and harmless AI assistant.",
    "You are a kind assistant who answers in short sentences.",
    "Answer the questions of the user.",
    "Be brief and friendly.",
    "You are an AI assistant.",
    "You are a chat model that can tell stories and use tools.",
    "Use the tools if you need them.",
    "Today is a good day. Help the user.",
    "You are a careful assistant. Remember what the user says.",
    "你是一个有用的助手。",
    "你是一个友好的人工智能助手。",
    "请用简短的句子回答问题。",
    "你会讲故事，也会使用工具。",
    "当开启工具时，根据需求选择合适的工具进行调用。",
    "请记住用户说的话。",
)


class Dialogue:
    """Messages so far, the language, the tools shown and what was told."""

    def __init__(self, rng: random.Random, tools_shown: list[DeclaredTool] | None = None) -> None:
        self.rng = rng
        self.language = rng.choice(("en", "zh"))
        self.tools = tools_shown or []
        self.told: dict[str, tuple[str, str]] = {}  # kind -> (language, value)
        self.messages: list[Message] = []
        if chance(rng, 0.5):
            self.messages.append(Message("system", _system_prompt(rng)))

    def add(self, exchange: Exchange) -> None:
        """Append a skill's messages."""
        self.messages.extend(exchange.messages)

    def plain(self, skill: str) -> Exchange:
        """An exchange of a skill that needs neither memory nor tools; now and then in the other language."""
        return PLAIN_SKILLS[skill](self.rng, self._turn_language())

    def with_tools(self) -> Exchange:
        """An exchange that uses the tools shown."""
        return tools.make_exchange(self.rng, self._turn_language(), self.tools)

    def add_tell(self, kind: str) -> None:
        """The user tells a fact of that kind, now and then beside the name."""
        if kind != "name" and chance(self.rng, 0.12):
            name, value, exchange = recall.tell_two(self.rng, self.language, kind)
            self.told["name"] = (self.language, name)
        else:
            value, exchange = recall.tell(self.rng, self.language, kind)
        self.told[recall.same_kind(kind)] = (self.language, value)
        self.add(exchange)

    def ask(self, kind: str) -> Exchange:
        """The user asks for a fact, in the language in which it was told."""
        language, value = self.told.get(recall.same_kind(kind), (self.language, None))
        return recall.ask(self.rng, language, kind if kind in recall.FACTS[language] else recall.same_kind(kind), value)

    def add_filler(self, keep: str | None = None) -> None:
        """One turn of anything, except that the fact of kind `keep` is not told anew."""
        skill = self.rng.choices(list(_FILLERS), list(_FILLERS.values()))[0]
        if self.tools and chance(self.rng, 0.3):
            self.add(self.with_tools())
        elif skill == "recall":
            self._add_recall_filler(keep)
        else:
            self.add(self.plain(skill if self.answers_itself(skill) else "small_talk"))

    def answers_itself(self, skill: str) -> bool:
        """False where questions of a plain skill might be meant for one of the tools shown."""
        if skill == "arithmetic":
            return not any(tool.kind.is_arithmetic for tool in self.tools)
        return skill != "unknown" or all(tool.kind.key in _NARROW_TOOLS for tool in self.tools)

    def _add_recall_filler(self, keep: str | None) -> None:
        kind = self.rng.choice(list(recall.FACTS[self.language]))
        if chance(self.rng, 0.6) and keep not in (recall.same_kind(kind), "name"):
            self.add_tell(kind)
        else:
            self.add(self.ask(kind))

    def _turn_language(self) -> str:
        if chance(self.rng, 0.06):
            return "zh" if self.language == "en" else "en"
        return self.language


def _system_prompt(rng: random.Random) -> str:
    """A common instruction, or words without meaning that must not matter."""
    if chance(rng, 0.85):
        return rng.choice(_SYSTEM_PROMPTS)
    return " ".join(made_up_word(rng) for _ in range(rng.randint(3, 20))).capitalize() + "."
