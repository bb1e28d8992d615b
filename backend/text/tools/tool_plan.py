"""Tool plan: which functions one answer may call, whether it has to, and what the model is shown of them.

Reads `tools`, `tool_choice` and `parallel_tool_calls` as OpenAI's API has them. Used by call_grammar.py and serving;
knows no model's format."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import RequestError
from backend.text.grammar import lenient_schema

MAX_TOOLS = 128  # as in OpenAI's API
TOOLS, TOOL_CHOICE = "tools", "tool_choice"  # whose fault an error is
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COMBINERS = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "additionalProperties",
                        "unevaluatedProperties", "propertyNames"})


@dataclass(frozen=True, slots=True)
class Function:
    """parameters  JSON schema of the arguments, an object
    field       where the request has it, for errors about it"""

    name: str
    parameters: Mapping[str, Any]
    field: str


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What one answer may call.

    tools        as the chat template shows them to the model
    functions    one for each of tools
    is_required  the answer is a call, from its first token
    is_parallel  it may have several calls"""

    tools: tuple[Mapping[str, Any], ...]
    functions: tuple[Function, ...]
    is_required: bool = False
    is_parallel: bool = True


def plan_tools(tools: Sequence[Mapping[str, Any]] | None, tool_choice: str | Mapping[str, Any] | None = None,
               parallel_tool_calls: bool | None = None) -> ToolPlan | None:
    """The plan of a request; None where nothing may be called, so that no tool is shown either.

    tool_choice  "none", "auto", "required", {"type": "function", "function": {"name"}} (that function is the only one
                 shown), or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}} (only those are)
    Raises RequestError that names the field."""
    declared = {}
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise RequestError(f"tools is a {type(tools).__name__}; give a list", TOOLS)
    for index, tool in enumerate(tools or ()):
        function = _function(tool, f"tools[{index}]")
        if function.name in declared:
            raise RequestError(f"tools[{index}]: the name {function.name!r} is taken; give each function its own",
                               TOOLS)
        declared[function.name] = (_shown(tool), function)
    if len(declared) > MAX_TOOLS:
        raise RequestError(f"tools has {len(declared)} functions; give at most {MAX_TOOLS}", TOOLS)
    mode, names = _choice(tool_choice, tuple(declared))
    if not declared and mode == "required":
        raise RequestError("tool_choice asks for a call, but there are no tools; give tools, or leave tool_choice out",
                           TOOL_CHOICE)
    if not names or mode == "none":
        return None
    shown, functions = zip(*(declared[name] for name in names), strict=True)
    return ToolPlan(shown, functions, mode == "required", parallel_tool_calls is not False)


def _choice(choice: Any, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(none, auto or required; the names that may be called)."""
    if choice is None or (isinstance(choice, str) and choice in ("none", "auto", "required")):
        return choice or "auto", names
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return "required", (_known(choice, names, "tool_choice"),)
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools")
        entries = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if not isinstance(entries, (list, tuple)) or not entries or allowed.get("mode") not in ("auto", "required"):
            raise RequestError("tool_choice.allowed_tools does not work; give mode (auto or required) and a list tools",
                               TOOL_CHOICE)
        chosen = [_known(entry, names, "tool_choice.allowed_tools.tools") for entry in entries]
        return allowed["mode"], tuple(name for name in names if name in chosen)
    raise RequestError(f"tool_choice={choice!r} does not work; use none, auto, required, or "
                       '{"type": "function", "function": {"name": one of the tools}}', TOOL_CHOICE)


def _known(entry: Any, names: tuple[str, ...], field: str) -> str:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in names:
        raise RequestError(f"{field} names {name!r}, which is not among the tools; use one of "
                           f"{', '.join(names) or 'tools, which is empty'}", TOOL_CHOICE)
    return name


def _function(tool: Any, field: str) -> Function:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else type(tool).__name__
        raise RequestError(f"{field}.type is {kind!r}; only functions can be called: use type function", TOOLS)
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{field}.function.name is {name!r}; use 1 to 64 letters, digits, _, - and .", TOOLS)
    parameters, field = function.get("parameters"), f"{field}.function.parameters"
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"{field} is a {type(parameters).__name__}; give a JSON schema", field)
    return Function(name, _arguments_schema(parameters, field), field)


def _arguments_schema(parameters: Mapping[str, Any] | None, field: str) -> dict[str, Any]:
    """Of the arguments: an object, and where properties are listed and nothing is said of others, only those, because
    a function is called with them by name. No schema means no parameters."""
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = lenient_schema({"type": parameters.get("type", "object")})["type"]
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise RequestError(f"{field} has the type {reprlib.repr(parameters['type'])}, but a function is called with an "
                           "object of its arguments; give a schema of type object", field)
    # Beside $ref, anyOf and the like it leaves of these what is an object, and is an error where nothing is.
    schema = {**parameters, "type": "object"}
    if "properties" in schema and not schema.keys() & _COMBINERS:
        schema["additionalProperties"] = False
    return schema


def _shown(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """`strict` is a wish about the grammar; models have not been trained on it."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
