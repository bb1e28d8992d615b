from __future__ import annotations

import json

import pytest

from backend.errors import RequestError
from backend.text.grammar import (
    MAX_GRAMMAR_CHARACTERS,
    choice_grammar,
    grammar_of,
    json_object_grammar,
    json_rule,
    json_schema_grammar,
    lenient_schema,
    regex_grammar,
)


def test_type_names_of_tutorials_become_those_of_json_schema_wherever_a_schema_stands():
    schema = {"type": "dict", "properties": {"type": {"type": "int"}, "enum": {"type": ["float", "None"]}},
              "items": [{"type": "str"}], "anyOf": [{"type": "list", "items": {"type": "bool"}}],
              "$defs": {"x": {"additionalProperties": {"type": "float"}}}}
    assert lenient_schema(schema) == {
        "type": "object", "properties": {"type": {"type": "integer"}, "enum": {"type": ["number", "null"]}},
        "items": [{"type": "string"}], "anyOf": [{"type": "array", "items": {"type": "boolean"}}],
        "$defs": {"x": {"additionalProperties": {"type": "number"}}}}


def test_what_a_schema_quotes_is_left_as_it_is():
    schema = {"enum": [{"type": "int"}], "const": {"type": "float"}, "default": {"type": "str", "format": "x"}}
    assert lenient_schema(schema) == schema


def test_formats_that_constrain_nothing_are_left_out():
    assert lenient_schema({"type": "string", "format": "password"}) == {"type": "string"}
    assert lenient_schema({"type": "string", "format": "uuid"}) == {"type": "string", "format": "uuid"}


def test_a_given_schema_is_not_changed():
    schema = {"type": "int", "properties": {"a": {"type": "float"}}}
    before = json.dumps(schema)
    json_schema_grammar(schema)
    assert json.dumps(schema) == before


def test_a_request_without_a_wish_has_no_grammar():
    assert grammar_of() is None
    assert grammar_of(response_format={"type": "text"}, regex=None) is None


def test_each_field_becomes_its_grammar():
    schema = {"type": "object", "properties": {"a": {"type": "int"}}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert grammar_of(response_format=named) == json_schema_grammar(schema) == f"start: {json_rule(schema)}"
    assert grammar_of(response_format={"type": "json_object"}) == json_object_grammar()
    assert grammar_of(regex="a/b") == regex_grammar("a/b") == r"start: /a\/b/"
    assert grammar_of(choice=["a", 'b"', "a"]) == choice_grammar(["a", 'b"']) == r'start: "a" | "b\""'
    assert grammar_of(grammar="start: /x/") == "start: /x/"


@pytest.mark.parametrize(("fields", "words"), [
    ({"response_format": {"type": "grammar"}}, "use text, json_object or json_schema"),
    ({"response_format": {}}, "use text, json_object or json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "a JSON schema is an object"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": float("nan")}}}}, "is no JSON"),
    ({"regex": ""}, "give a regular expression"), ({"choice": []}, "a list of texts"),
    ({"choice": ["a", ""]}, "none empty"), ({"choice": ["a"] * 10_001}, "give fewer, or a regex"),
    ({"grammar": " "}, "give a Lark grammar"), ({"grammar": "x" * (MAX_GRAMMAR_CHARACTERS + 1)}, "give a smaller one"),
    ({"regex": "a", "grammar": "start: /b/"}, "regex and grammar cannot both be followed"),
], ids=str)
def test_what_makes_no_grammar_is_refused(fields, words):
    with pytest.raises(RequestError, match=words):
        grammar_of(**fields)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_schema_nested_without_end_is_refused(depth):
    schema: dict = {}
    for _ in range(depth):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="nested deeper than 60 levels"):
        json_schema_grammar(schema)


def test_an_enormous_schema_is_refused():
    with pytest.raises(RequestError, match=r"a JSON schema of .* characters is longer than 1,000,000"):
        json_schema_grammar({"description": "x" * 10_000_000})


@pytest.mark.parametrize("value", [["date"], {}, 1])
def test_a_format_that_is_no_text_constrains_nothing(value):
    assert lenient_schema({"type": "string", "format": value}) == {"type": "string"}
