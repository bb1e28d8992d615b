"""Grammars: what an answer must look like, as one text in llguidance's dialect of Lark, the only form that the rest of
Millrace knows (SamplingParams.grammar).

Made here from a JSON schema, "any JSON object", a regular expression or a list of choices. Writes text and reads none:
whether a grammar compiles is for grammar_check.py to say. Used by serving, tools and callers of LLM; imports nothing
but the standard library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import RequestError

MAX_GRAMMAR_CHARACTERS = 1_000_000  # an enum of 30,000 texts; beyond it nothing is tried
MAX_CHOICES = 10_000
MAX_SCHEMA_DEPTH = 60  # llguidance reads 128 levels of JSON, of which a nested property takes two
# Between two JSON tokens: a space, or a line break with its indentation. Where more is allowed, a model whose likeliest
# continuation is a space may write nothing else.
WHITESPACE = r" |\n[ \t]{0,20}"

# Names that tutorials use, after Python's, and JSON Schema's for them.
_TYPE_NAMES = {"int": "integer", "float": "number", "double": "number", "str": "string", "text": "string",
               "bool": "boolean", "dict": "object", "list": "array", "tuple": "array", "None": "null", "none": "null"}
# Those that constrain; JSON Schema has the others as remarks.
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
_ONE_SCHEMA = frozenset(("items", "additionalItems", "additionalProperties", "unevaluatedProperties",
                         "unevaluatedItems", "contains", "propertyNames", "not", "if", "then", "else"))
_SCHEMAS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


def json_schema_grammar(schema: Mapping[str, Any] | bool) -> str:
    """An answer that is one JSON value which the schema allows. Raises RequestError."""
    return f"start: {json_rule(schema)}"


def json_object_grammar() -> str:
    """An answer that is any one JSON object."""
    return json_schema_grammar({"type": "object"})


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """`%json {…}`: a part of a rule, standing for a JSON value that the schema allows. Type names that tutorials use
    (int, float …) are understood. Raises RequestError for what is no schema."""
    if isinstance(schema, bool):
        return f"%json {json.dumps(schema)}"
    if not isinstance(schema, Mapping):
        raise RequestError(f"a JSON schema is an object, not {_kind(schema)}; "
                           'give one like {"type": "object", "properties": {…}}')
    schema = {**lenient_schema(schema), "x-guidance": {"whitespace_pattern": WHITESPACE}}
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the JSON schema is no JSON: {error}; use objects, lists, texts, numbers and booleans"
                           ) from None
    return f"%json {_bounded(text, 'JSON schema')}"


def regex_grammar(regex: str) -> str:
    """An answer that the regular expression matches from its beginning to its end. Raises RequestError."""
    if not isinstance(regex, str) or not regex:
        raise RequestError(f"regex is {_kind(regex)}; give a regular expression like [0-9]+")
    return f"start: /{_slashes_escaped(_bounded(regex, 'regex'))}/"


def choice_grammar(choices: Sequence[str]) -> str:
    """An answer that is one of the texts. Raises RequestError."""
    is_list = isinstance(choices, (list, tuple))
    if not is_list or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError('choice is a list of texts, none empty; give one like ["yes", "no"]')
    if len(choices) > MAX_CHOICES:
        raise RequestError(f"{len(choices)} choices are more than {MAX_CHOICES}; give fewer, or a regex")
    texts = [json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices)]
    return _bounded("start: " + " | ".join(texts), "list of choices")


def grammar_of(response_format: Mapping[str, Any] | None = None, regex: str | None = None,
               choice: Sequence[str] | None = None, grammar: str | None = None) -> str | None:
    """The grammar that a request's fields ask for: OpenAI's response_format, or one of our regex, choice and grammar.

    None where the answer is free text. Raises RequestError, which names the field, for what cannot be done."""
    made = _of_response_format(response_format)
    asked = {"response_format": made, "regex": regex, "choice": choice, "grammar": grammar}
    names = [name for name, value in asked.items() if value is not None]
    if len(names) > 1:
        raise RequestError(f"{' and '.join(names)} cannot both be followed; give one of them")
    if regex is not None:
        return regex_grammar(regex)
    if choice is not None:
        return choice_grammar(choice)
    if grammar is not None and (not isinstance(grammar, str) or not grammar.strip()):
        raise RequestError(f"grammar is {_kind(grammar)}; give a Lark grammar like start: /[0-9]+/")
    return made if grammar is None else _bounded(grammar, "grammar")


def lenient_schema(schema: Any, depth: int = 0) -> Any:
    """The schema with the type names of tutorials replaced by JSON Schema's (int → integer, float → number …), and
    without formats that constrain nothing. What the schema quotes (enum, const, default …) stays as it is.

    Raises RequestError for a schema that is nested too deeply."""
    if depth > MAX_SCHEMA_DEPTH:
        raise RequestError(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH} levels; move parts to $defs")
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            value = [_type_name(each) for each in value] if isinstance(value, list) else _type_name(value)
        elif key == "format" and not (isinstance(value, str) and value in _FORMATS):
            continue
        elif key in _SCHEMAS and isinstance(value, list):
            value = [lenient_schema(each, depth + 1) for each in value]
        elif key in _ONE_SCHEMA:
            value = lenient_schema(value, depth + 1)
        elif key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            value = {name: lenient_schema(each, depth + 1) for name, each in value.items()}
        found[key] = value
    return found


def _of_response_format(given: Mapping[str, Any] | None) -> str | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return json_object_grammar()
    if kind == "json_schema":
        named = given.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if schema is None:
            raise RequestError('response_format json_schema has no schema; give {"type": "json_schema", '
                               '"json_schema": {"name": …, "schema": {…}}}')
        return json_schema_grammar(schema)
    raise RequestError(f"response_format type {kind!r} does not work; use text, json_object or json_schema")


def _type_name(name: Any) -> Any:
    return _TYPE_NAMES.get(name, name) if isinstance(name, str) else name


def _slashes_escaped(regex: str) -> str:
    """As it has to stand between slashes: a slash that is not escaped yet is, and a line break is spelt."""
    parts, is_escaped = [], False
    for letter in regex:
        if letter == "/" and not is_escaped:
            parts.append("\\")
        elif letter in "\n\r" and is_escaped:
            parts.pop()
        parts.append({"\n": "\\n", "\r": "\\r"}.get(letter, letter))
        is_escaped = letter == "\\" and not is_escaped
    return "".join(parts)


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError(f"a {what} of {len(text):,} characters is longer than {MAX_GRAMMAR_CHARACTERS:,}; "
                           "give a smaller one")
    return text


def _kind(value: object) -> str:
    return "empty" if value == "" else f"of type {type(value).__name__}"
