"""Call grammar: what an answer with tools may be, in llguidance's dialect of Lark.

A call's arguments follow the function's JSON schema in every mode; after a call there is another one or the end. Used
by serving; what is written here is read back by call_parser.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import RequestError
from backend.text.grammar import json_rule
from backend.text.tools.tool_format import CALL_END, ToolFormat
from backend.text.tools.tool_plan import Function, ToolPlan

_TEXT = r"TEXT: /(.|\n)*/"


def call_grammar(tool_format: ToolFormat, plan: ToolPlan, content: str | None = None) -> str:
    """The grammar of one answer.

    Where a call may be made, free text may come before it; where one must be made, the first token begins it.

    content  what an answer without calls has to follow, a grammar of one rule, `start`; then calls have no text before
             them. Raises RequestError for a grammar of several rules"""
    rule = None if content is None or plan.is_required else _only_rule(content)
    rules = [f"content: {rule}"] if rule is not None else []
    return "\n".join(("%llguidance {}", *_GRAMMARS[tool_format.name](tool_format, plan, bool(rules)), *rules, ""))


def _only_rule(grammar: str) -> str:
    rule = grammar.removeprefix("start: ")
    if rule == grammar or "\n" in rule:
        raise RequestError("grammar cannot be followed beside tools; use response_format, regex or choice, or leave "
                           "tools out")
    return rule


def _internlm(tool_format: ToolFormat, plan: ToolPlan, has_content: bool) -> list[str]:
    calls = "call+" if plan.is_parallel else "call"
    rest = "" if plan.is_required else " | content" if has_content else f" | TEXT {calls} | TEXT"
    return [f"start: {calls}{rest}",
            # Tokenizers of SentencePiece may put a space behind a special token.
            rf"call: <|action_start|> <|plugin|> / ?\n/ function {CALL_END}",
            *_functions(tool_format, plan.functions), _TEXT]


def _hermes(tool_format: ToolFormat, plan: ToolPlan, has_content: bool) -> list[str]:
    mark = {marker: marker if marker in tool_format.special else _literal(marker)
            for marker in ("<tool_call>", "</tool_call>", *tool_format.reasoning)}
    begin, end = mark["<tool_call>"], mark["</tool_call>"]
    calls = "call more*" if plan.is_parallel else "call"
    rules = [f'call: "\\n" function "\\n" {end}', f'more: "\\n" {begin} call', _TEXT,
             *_functions(tool_format, plan.functions)]
    if plan.is_required or has_content:
        answer = f"({begin} {calls}{' | content' if has_content else ''})"
        start = rf"reasoning /\n{{0,2}}/ {answer}" if tool_format.is_begun else answer
    else:
        answer = f"(opening {calls} | ANSWER)"
        start = f"reasoning {answer}" if tool_format.is_begun else f"reasoning? {answer}"
        rules.append(_lazily("opening", f"ANSWER {begin}", begin in tool_format.special))
    # Thoughts may speak of calls; the text around calls is what does not begin as thoughts do.
    think, thought = (mark[marker] for marker in tool_format.reasoning)
    is_special = tool_format.special >= set(tool_format.reasoning)
    if tool_format.is_begun:
        thoughts, other = f"TEXT {thought}", "TEXT"
    elif is_special:
        thoughts, other = f"{think} TEXT {thought}", "TEXT"
    else:
        thoughts, other = rf"/\s*/ {think} TEXT {thought}", rf"TEXT & ~(/\s*/ {think} TEXT)"
    return [f"start: {start}", _lazily("reasoning", thoughts, is_special), f"ANSWER: {other}", *rules]


def _lazily(rule: str, body: str, has_special_tokens: bool) -> str:
    """A rule that ends with its first marker: a special token is never inside of text, any other is looked for."""
    return f"{rule}: {body}" if has_special_tokens else f"{rule}[lazy]: {body}"


def _llama(tool_format: ToolFormat, plan: ToolPlan, has_content: bool) -> list[str]:
    named = " | ".join(f"{_literal(function.name + '>')} arguments_{index}"
                       for index, function in enumerate(plan.functions))
    rules = _functions(tool_format, plan.functions)
    if plan.is_required:
        return ["start: function", *rules]
    if has_content:
        # Content may be JSON too. Both begin alike, and only JSON rules are told apart later than by their first token.
        return [f"start: {' | '.join(map(_whole_call, plan.functions))} | content"]
    tagged = " | ANSWER <|python_tag|> function" if "<|python_tag|>" in tool_format.special else ""
    # One call an answer is what these models were trained on, and what their own template takes back.
    return [f"start: ANSWER | function{tagged} | opening named {_literal('</function>')}",
            'opening[lazy]: ANSWER "<function="', f"named: {named}", r"ANSWER: /\s*([^{\s](.|\n)*)?/", *rules]


_GRAMMARS = {"InternLM2.5": _internlm, "Hermes": _hermes, "Llama 3.1": _llama}


def _functions(tool_format: ToolFormat, functions: Sequence[Function]) -> list[str]:
    """Rules: `function`, the call as a JSON object, and `arguments_i` of each function."""
    heads = (f'{{"name": {json.dumps(function.name)}, "{tool_format.arguments}": ' for function in functions)
    choices = (f'{_literal(head)} arguments_{index} "}}"' for index, head in enumerate(heads))
    return [f"function: {' | '.join(choices)}",
            *(f"arguments_{index}: {_json_rule(function, function.parameters)}"
              for index, function in enumerate(functions))]


def _whole_call(function: Function) -> str:
    """A call as one rule; what a schema's references name moves with them to the top."""
    shared = {key: value for key, value in function.parameters.items() if key in ("$defs", "definitions")}
    arguments = {key: value for key, value in function.parameters.items() if key not in shared}
    return _json_rule(function, {
        "type": "object", "properties": {"name": {"const": function.name}, "parameters": arguments},
        "required": ["name", "parameters"], "additionalProperties": False, **shared})


def _json_rule(function: Function, schema: Mapping[str, Any]) -> str:
    try:
        return json_rule(schema)
    except RequestError as error:
        raise RequestError(f"{function.field}: {error}", function.field) from None


def _literal(text: str) -> str:
    return json.dumps(text)
