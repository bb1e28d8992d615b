"""response_format, regex, choice and grammar on the demo model, at the chat and the completion endpoint."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "Compute 17+25"}]
POINT = {"type": "object", "properties": {"x": {"type": "int"}, "label": {"enum": ["near", "far"]}},
         "required": ["x", "label"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": POINT}}
ADD = {"type": "function", "function": {"name": "add", "description": "Compute the sum of two numbers", "parameters": {
    "type": "object", "properties": {"a": {"type": "int"}, "b": {"type": "int"}}, "required": ["a", "b"]}}}


def chat(api, **fields: Any) -> str:
    choice = api.ask(CHAT, **{"messages": QUESTION, "temperature": 0, "max_tokens": 200, **fields})["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    return choice["message"]["content"]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_schema_is_followed(api, temperature):
    point = json.loads(chat(api, response_format=FORMAT, temperature=temperature, seed=1))
    assert point.keys() == {"x", "label"} and isinstance(point["x"], int) and point["label"] in ("near", "far")


def test_text_is_any_text(api):
    assert chat(api, response_format={"type": "text"}) == chat(api)


@pytest.mark.parametrize("fields, pattern", [
    ({"regex": "[0-9]{3}(/| )[a-c]{2}"}, "[0-9]{3}(/| )[a-c]{2}"), ({"choice": ["yes", "no \"x\""]}, 'yes|no "x"'),
    ({"grammar": 'start: word ("-" word){2}\nword: "ha" | "ho"'}, "h[ao](-h[ao]){2}"),
])
def test_an_answer_matches(api, fields, pattern):
    assert re.fullmatch(pattern, chat(api, **fields))
    answer = api.ask(COMPLETIONS, prompt=["one", "two"], max_tokens=50, temperature=1.0, **fields)
    assert all(re.fullmatch(pattern, choice["text"]) for choice in answer["choices"])


def test_an_answer_calls_or_has_the_format(api):
    both = {"messages": QUESTION, "temperature": 0, "tools": [ADD], "response_format": FORMAT}
    choice = api.ask(CHAT, **both)["choices"][0]
    if choice["finish_reason"] == "tool_calls":
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        assert choice["message"]["content"] is None and arguments == {"a": 17, "b": 25}
    else:
        assert json.loads(choice["message"]["content"]).keys() == {"x", "label"}
    point = json.loads(chat(api, tools=[ADD], response_format=FORMAT, tool_choice="none"))
    assert point.keys() == {"x", "label"}


@pytest.mark.parametrize("fields, param", [
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": FORMAT, "regex": "a"}, "response_format"),
    ({"regex": "("}, "regex"), ({"regex": ""}, "regex"), ({"choice": []}, "choice"),
    ({"grammar": "start: nothing"}, "grammar"),
    ({"tools": [ADD], "grammar": 'start: a\na: "b"'}, None),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "what"}}}]},
     "tools[0].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "what"}}}],
      "response_format": {"type": "text"}}, "tools[0].function.parameters"),
    ({"grammar": "start: stop_ids"}, "grammar"),
])
def test_what_cannot_be_followed_is_refused(api, fields, param):
    response = api.post(CHAT, messages=QUESTION, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"], error
    if param is not None:
        assert error["param"] == param, error


@pytest.mark.parametrize("given, param, message", [
    ({}, "response_format.type", "the field response_format.type is missing; add it"),
    ({"type": "xml"}, "response_format", "response_format: type 'xml' is not supported here; use one of 'text', "
                                         "'json_object', 'json_schema'"),
    ({"type": []}, "response_format", "response_format: type '[]'"),
    (7, "response_format", "response_format: Input should be an object"),
])
def test_a_format_of_no_known_type_is_refused_in_our_own_words(api, given, param, message):
    error = api.post(CHAT, messages=QUESTION, response_format=given).json()["error"]
    assert error["param"] == param and error["message"].startswith(message), error
