"""Tool declarations: what a kind of tool is, and how one conversation declares it.

A kind says how it may be declared, asked for and answered; `declare` makes one declaration, with names, types and
descriptions chosen anew, so that the model has to read the list.
Used by tool_catalogue.py (the kinds) and tools.py (the turns)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from demo.chance import chance
from demo.conversation import Tool

Draw = Callable[[random.Random, str], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: what it may be called, its type and how to draw a value in a language.

    An optional one is not always declared, and is asked for by the sentence in `request` ({v} is the value)."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    descriptions: tuple[str, ...]
    draw: Draw
    request: dict[str, str] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolKind:
    """One kind of tool. In `asks` and `answers`, {0} and {1} are the required arguments and {name} a result's field."""

    key: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asks: dict[str, tuple[str, ...]]
    result: Callable[[random.Random, str, list[Any]], dict[str, Any]]
    answers: dict[str, str]
    is_arithmetic: bool = False
    other_fields: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what a field of the result may be called


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """A kind with the names chosen for one conversation; `schema` is what the model is shown."""

    kind: ToolKind
    name: str
    parameters: tuple[tuple[str, Parameter], ...]
    schema: Tool


def declare(rng: random.Random, kind: ToolKind) -> DeclaredTool:
    """Choose name, description and parameter names of a tool; the first choices are the likeliest."""
    chosen: list[tuple[str, Parameter]] = []
    style = 0 if chance(rng, 0.6) else rng.randrange(8)  # the parameters' names go together: a and b, x and y
    for parameter in kind.parameters:
        if parameter.request is None or chance(rng, 0.5):
            chosen.append((parameter.names[style % len(parameter.names)], parameter))
    name = kind.names[0] if chance(rng, 0.4) else rng.choice(kind.names)
    return DeclaredTool(kind, name, tuple(chosen), _schema(rng, kind, name, chosen))


def _schema(rng: random.Random, kind: ToolKind, name: str, parameters: list[tuple[str, Parameter]]) -> Tool:
    is_described = chance(rng, 0.7)
    type_index = rng.randrange(8)
    properties: dict[str, Any] = {}
    for parameter_name, parameter in parameters:
        entry = {"type": parameter.types[type_index % len(parameter.types)]}
        if parameter.choices and chance(rng, 0.7):
            entry["enum"] = list(parameter.choices)
        if is_described:
            entry["description"] = rng.choice(parameter.descriptions)
        elif chance(rng, 0.2):
            entry["title"] = parameter_name.capitalize()
        properties[parameter_name] = entry
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if chance(rng, 0.85):
        schema["required"] = [name for name, parameter in parameters if parameter.request is None]
    fields = [("name", name), ("description", rng.choice(kind.descriptions)), ("parameters", schema)]
    if chance(rng, 0.25):
        fields[0], fields[1] = fields[1], fields[0]
    return dict(fields)
