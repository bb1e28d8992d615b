"""Answers in each format, for the tests of the parser and of the grammar, with what they say."""

from __future__ import annotations

from typing import Any

from backend.text.tools import tool_format
from backend.text.tools.tool_format import ToolFormat

INTERNLM = tool_format.internlm_format(frozenset({"<|action_start|>", "<|action_end|>", "<|plugin|>"}))
HERMES = tool_format.hermes_format(frozenset())
THINKING = tool_format.hermes_format(frozenset(), is_begun=True)
LLAMA = tool_format.llama_format(frozenset({"<|python_tag|>"}))
FORMATS = (INTERNLM, HERMES, LLAMA)

ADD = ("add", '{"a": 3, "b": -5}')
SAY = ("say", '{"text": "a \\"quoted\\" } \\\\ brace </tool_call><|action_end|> 你好", "list": [1, {"x": null}]}')
NOW = ("now", "{}")

Call = tuple[str, str]


def write(style: ToolFormat, content: str, *calls: Call) -> str:
    """An answer as a model of this format writes it."""
    if style is INTERNLM:
        return content + "".join(f'<|action_start|><|plugin|>\n{{"name": "{name}", "parameters": {arguments}}}'
                                 "<|action_end|>" for name, arguments in calls)
    if style is HERMES:
        blocks = [f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
                  for name, arguments in calls]
        return "\n".join([content, *blocks] if content else blocks)
    (name, arguments), = calls
    return f"{content}<function={name}>{arguments}</function>" if content else (
        f'{{"name": "{name}", "parameters": {arguments}}}')


# (format, what the model writes, content, calls) of whole answers.
ANSWERS: tuple[tuple[ToolFormat, str, str, tuple[Call, ...]], ...] = (
    *((style, write(style, "", call), "", (call,)) for style in FORMATS for call in (ADD, SAY, NOW)),
    *((style, write(style, "Let me see. ", SAY), "Let me see.", (SAY,)) for style in FORMATS),
    *((style, write(style, "你好\n", ADD, SAY, NOW), "你好", (ADD, SAY, NOW)) for style in (INTERNLM, HERMES)),
    *((style, text, text, ()) for style in FORMATS for text in (
        "", "Just text.", " \n", "a < b <| <tool_ca <|action_start <functio", "text {\"name\": 3} \n")),
    (HERMES, "<think>\nmaybe <tool_call> now\n</think>\n\n" + write(HERMES, "", ADD),
     "<think>\nmaybe <tool_call> now\n</think>", (ADD,)),
    (HERMES, "<think>\nno <tool_call>\n</think>\n\nNo.", "<think>\nno <tool_call>\n</think>\n\nNo.", ()),
    (HERMES, "<thinking of it", "<thinking of it", ()),
    (THINKING, "maybe <tool_call> now\n</think>\n\n" + write(HERMES, "", ADD),
     "maybe <tool_call> now\n</think>", (ADD,)),
    (THINKING, "<tool_call>\n</think>\n\nNo.", "<tool_call>\n</think>\n\nNo.", ()),
    (LLAMA, "<|python_tag|>" + write(LLAMA, "", ADD), "", (ADD,)),
)


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "description": "// # } <tool_call> see http://x.y"}
    return {"type": "function", "function": function if parameters is None else {**function, "parameters": parameters}}


TOOLS = [
    tool("add", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                 "required": ["a", "b"]}),
    tool("say", {"type": "object", "properties": {"text": {"type": "string"}, "list": {"$ref": "#/$defs/list"}},
                 "required": ["text"], "$defs": {"list": {"type": "array"}}}),
    tool("now"),
]
