"""Tool format: how one family of models writes calls, as data that the grammar and the parser share.

Known are InternLM2.5's, Llama 3.1's and that of Qwen2.5 and 3 (which came with Hermes). Which one a model writes is
read off its chat template and its vocabulary. Used by call_grammar.py, call_parser.py and front_end.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.errors import TemplateError
from backend.text.chat_template import ChatTemplate
from backend.text.tokenizer import Tokenizer

_THOUGHTS = ("<think>", "</think>")
CALL_END = "<|action_end|>"  # InternLM's, which its chat template takes for the end of an answer
# A string that is JSON, without control characters and, lest half of a pair stand alone, without escaped surrogates.
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})*"'


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """One way to write a call.

    opening     the text with which it begins, a marker
    name        matches from the opening to the arguments' first character; its group is the function's name, in quotes
                as JSON or bare
    beginning   matches whatever could still grow into what `name` matches
    closing     matches what follows the arguments
    is_initial  it is a call only where the answer begins with it"""

    opening: str
    name: re.Pattern[str]
    beginning: re.Pattern[str]
    closing: re.Pattern[str]
    is_initial: bool = False


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A family's format.

    syntaxes   the ways in which a call may be written
    arguments  the key of a call's arguments, beside `name`
    reasoning  markers of thoughts at the beginning of an answer, in which nothing is a call
    is_begun   the prompt ends with the first of them, so every answer begins within thoughts
    special    those of its markers that are special tokens in this model's vocabulary, the others being plain text"""

    name: str
    syntaxes: tuple[CallSyntax, ...]
    arguments: str
    reasoning: tuple[str, str] | None = None
    is_begun: bool = False
    special: frozenset[str] = frozenset()


def find_format(template: ChatTemplate, tokenizer: Tokenizer) -> ToolFormat | None:
    """The format in which a model calls tools; None where it takes none, or writes calls in a way not known here."""
    if not template.takes_tools:
        return None
    special = frozenset(marker for marker in _MARKERS if tokenizer.token_to_id(marker) in tokenizer.special_ids)
    source = template.tool_source
    if "<tool_call>" in source and "<parameter=" not in source:  # with <parameter=> calls are XML, not JSON
        return hermes_format(special, _ends_in_thoughts(template))
    if "ipython" in source:
        return llama_format(special)
    if special >= {"<|action_start|>", CALL_END, "<|plugin|>"}:
        return internlm_format(special)
    return None


_MARKERS = ("<|action_start|>", CALL_END, "<|plugin|>", "<tool_call>", "</tool_call>", *_THOUGHTS,
            "<|python_tag|>")


def _ends_in_thoughts(template: ChatTemplate) -> bool:
    """Whether prompts end with the beginning of thoughts, as those of models that always think do. Where a request may
    turn thoughts off, its prompt need not."""
    if "enable_thinking" in template.tool_source:
        return False
    try:
        return template.render([{"role": "user", "content": "?"}]).rstrip().endswith(_THOUGHTS[0])
    except TemplateError:
        return False  # a template with other demands, such as a system message


def _json_call(opening: str, arguments: str, closing: str, is_initial: bool = False) -> CallSyntax:
    name = rf'{re.escape(opening)}\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"{arguments}"\s*:\s*(?=\{{)'
    beginning = _growing(*opening, " ", "{", " ", *'"name"', " ", ":", " ", '"', r'(?:[^"\\]|\\.)*\\?', '"',
                         " ", ",", " ", *f'"{arguments}"', " ", ":", " ")
    end = rf"\s*\}}\s*{re.escape(closing)}" if closing else r"\s*\}"
    return CallSyntax(opening or "{", re.compile(name), beginning, re.compile(end), is_initial)


def _growing(*parts: str) -> re.Pattern[str]:
    """Matches the parts as far as they have come, each after those before it: a letter, a space standing for any white
    space, or a longer pattern."""
    pattern = ""
    for part in reversed(parts):
        part = r"\s*" if part == " " else re.escape(part) if len(part) == 1 else part
        pattern = f"(?:{part}{pattern})?"
    return re.compile(pattern)


def internlm_format(special: frozenset[str]) -> ToolFormat:
    """{thought}<|action_start|><|plugin|>\\n{"name", "parameters"}<|action_end|>; several calls side by side."""
    return ToolFormat("InternLM2.5", (_json_call("<|action_start|><|plugin|>", "parameters", CALL_END),),
                      "parameters", special=special)


def hermes_format(special: frozenset[str], is_begun: bool = False) -> ToolFormat:
    """{text}<tool_call>\\n{"name", "arguments"}\\n</tool_call>; several calls on lines of their own."""
    return ToolFormat("Hermes", (_json_call("<tool_call>", "arguments", "</tool_call>"),), "arguments",
                      _THOUGHTS, is_begun, special)


def llama_format(special: frozenset[str]) -> ToolFormat:
    """{"name", "parameters"} as the whole answer, after <|python_tag|> or not; or <function=NAME>{}</function>."""
    by_name = CallSyntax("<function=", re.compile(r"<function=([^>\s]+)>\s*(?=\{)"),
                         _growing(*"<function=", r"[^>\s]+", ">", " "), re.compile(r"\s*</function>"))
    return ToolFormat("Llama 3.1", (_json_call("", "parameters", "", is_initial=True),
                                    _json_call("<|python_tag|>", "parameters", ""), by_name), "parameters",
                      special=special)
