"""Tools: choose a function from the list shown, call it in InternLM2.5's format, and put its result into words.

Owns the text of a call (`call_text`, `parse_call`) and the turns around it; tool_catalogue.py owns the tools.
Used by corpus.py; checked by checks.py through the kinds "tool_call" (the call) and "contains" (the answer)."""

from __future__ import annotations

import json
import random
from typing import Any

from demo.chance import chance, lean, number, roughen
from demo.conversation import Exchange, Message
from demo.skills.arithmetic import in_words
from demo.skills.tool_catalogue import ADD, MUL, any_kind
from demo.skills.tool_declaration import DeclaredTool, declare

CALL_START = "<|action_start|><|plugin|>\n"
CALL_END = "<|action_end|>"

_THOUGHTS = {
    "en": ("I will use {name} for this.", "Let me call {name}."),
    "zh": ("我来使用{name}。", "让我调用{name}。"),
}
_EXPLICIT = {"en": "Call {name} with {arguments}.", "zh": "请用{arguments}调用{name}。"}
_CHAIN_ASKS = {
    "en": ("Compute {x}", "What is {x}?", "Calculate {x}.", "{x} = ?", "How much is {x}?", "Please compute {x}"),
    "zh": ("计算{x}", "{x}等于多少？", "{x}是多少？", "请算一下{x}。"),
}
_CHAIN_ANSWERS = {"en": "{x} is {result}.", "zh": "{x}等于{result}。"}


def call_text(thought: str, name: str, parameters: dict[str, Any]) -> str:
    """An assistant's message that calls a tool (InternLM2.5's agent format)."""
    call = json.dumps({"name": name, "parameters": parameters}, ensure_ascii=False)
    return f"{thought}{CALL_START}{call}{CALL_END}"


def parse_call(text: str) -> dict[str, Any] | None:
    """The {"name", "parameters"} that a message calls, or None where it holds no well-formed call."""
    _, start, rest = text.partition(CALL_START)
    call, end, after = rest.partition(CALL_END)
    if not (start and end) or after.strip():
        return None
    try:
        parsed = json.loads(call)
    except json.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) and parsed.keys() == {"name", "parameters"} else None


def declare_some(rng: random.Random) -> list[DeclaredTool]:
    """One to six tools with names that differ; add and mul often come together, as in tutorials."""
    wanted = rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
    tools = [declare(rng, ADD), declare(rng, MUL)] if wanted > 1 and chance(rng, 0.35) else []
    while len(tools) < wanted:
        tool = declare(rng, any_kind(rng))
        if all(tool.name != other.name and tool.kind.key != other.kind.key for other in tools):
            tools.append(tool)
    if chance(rng, 0.5):
        rng.shuffle(tools)
    return tools


def make_exchange(rng: random.Random, language: str, tools: list[DeclaredTool]) -> Exchange:
    """A question for one of the tools (for add and mul, now and then for both), the call, its result and the answer."""
    add, mul = (next((tool for tool in tools if tool.kind is kind), None) for kind in (ADD, MUL))
    if add and mul and chance(rng, 0.25):
        return _chain(rng, language, add, mul)
    tool = rng.choice(tools)
    arguments = {name: p.draw(rng, language) for name, p in tool.parameters if p.request is None}
    values = list(arguments.values())
    question, said = _question(rng, language, tool, arguments)
    for name, parameter in tool.parameters:
        if parameter.request is not None and chance(rng, 0.5):
            arguments[name] = parameter.draw(rng, language)
            question += parameter.request[language].format(v=arguments[name])
    result = tool.kind.result(rng, language, values)
    answer = tool.kind.answers[language].format(*said, **result)
    messages = [Message("user", question), _call(rng, language, tool.name, arguments)]
    messages += [Message("environment", _result_text(rng, tool, arguments, result)), Message("assistant", answer)]
    expected = [str(value) for value in result.values()] if set(result) != {"status"} else [answer]
    return Exchange(tuple(messages), {"kind": "contains", "values": expected})


def up_to_call(exchange: Exchange, index: int) -> Exchange:
    """The exchange cut after its `index`-th call, with the check of that call."""
    calls = [i for i, message in enumerate(exchange.messages) if CALL_START in message.content]
    messages = exchange.messages[: calls[index % len(calls)] + 1]
    return Exchange(messages, {"kind": "tool_call", "call": parse_call(messages[-1].content)})


def _question(
    rng: random.Random, language: str, tool: DeclaredTool, arguments: dict[str, Any]
) -> tuple[str, list[str]]:
    """The user's text, and the arguments as the answer says them."""
    said = [str(value) for value in arguments.values()]
    if chance(rng, 0.08):
        listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
        return _EXPLICIT[language].format(name=tool.name, arguments=listed), said
    heard = said
    values = list(arguments.values())
    if tool.kind.is_arithmetic and chance(rng, 0.3) and max(values) < 100:
        heard = [in_words(value, language) for value in values]
    return roughen(rng, rng.choice(tool.kind.asks[language]).format(*heard)), said


def _call(rng: random.Random, language: str, name: str, arguments: dict[str, Any]) -> Message:
    return Message("assistant", call_text(lean(rng, _THOUGHTS[language]).format(name=name), name, arguments))


def _result_text(rng: random.Random, tool: DeclaredTool, arguments: dict[str, Any], result: dict[str, Any]) -> str:
    """A tool's result as programs return it: JSON, at times with the arguments repeated, or the bare values."""
    if chance(rng, 0.5 if len(result) == 1 else 0.2):
        sign = {"add": "+", "mul": "*"}.get(tool.kind.key)
        text = ", ".join(map(str, result.values()))
        return f"{sign.join(map(str, arguments.values()))}={text}" if sign and chance(rng, 0.4) else text
    fields = dict(result)
    if chance(rng, 0.3):
        names = {name: rng.choice((name, *tool.kind.other_fields.get(name, ()))) for name in result}
        fields = {names[name]: value for name, value in result.items()}
    if chance(rng, 0.2):
        fields = {**arguments, **fields} if chance(rng, 0.5) else {**fields, **arguments}
    return json.dumps(fields, ensure_ascii=False)


def _chain(rng: random.Random, language: str, add: DeclaredTool, mul: DeclaredTool) -> Exchange:
    """Two calls, the second with the first one's result: (3+5)*2."""
    a, b, c = (number(rng, 3) for _ in range(3))
    form = rng.choice(("({a}+{b})*{c}", "({a}+{b})*{c}", "{c}*({a}+{b})", "{a}*{b}+{c}", "{c}+{a}*{b}"))
    first, second = (add, mul) if "(" in form else (mul, add)
    inner = a + b if first is add else a * b
    outer = inner * c if second is mul else inner + c
    expression = form.format(a=a, b=b, c=c)
    if chance(rng, 0.3):
        expression = expression.replace("+", " + ").replace("*", " * ")
    operands = (c, inner) if form.startswith("{c}") else (inner, c)

    def turn(tool: DeclaredTool, values: tuple[int, int], result: int) -> list[Message]:
        arguments = dict(zip([name for name, _ in tool.parameters], values, strict=True))
        return [
            _call(rng, language, tool.name, arguments),
            Message("environment", _result_text(rng, tool, arguments, {"result": result})),
        ]

    answer = _CHAIN_ANSWERS[language].format(x=expression, result=outer)
    messages = [Message("user", rng.choice(_CHAIN_ASKS[language]).format(x=expression))]
    messages += turn(first, (a, b), inner) + turn(second, operands, outer) + [Message("assistant", answer)]
    return Exchange(tuple(messages), {"kind": "contains", "values": [str(outer)]})
