"""response_format, regex, choice and grammar over HTTP: answers that follow them, and refusals that say why."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

QUESTION = [{"role": "user", "content": "What is seven plus twelve?"}]
SCHEMA = {"type": "object", "properties": {"sum": {"type": "int"}, "exact": {"type": "boolean"}},
          "required": ["sum", "exact"], "additionalProperties": False}
CHAT = "/v1/chat/completions"


def json_schema(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_follows_its_json_schema(api, temperature):
    answer = api.ask(CHAT, messages=QUESTION, response_format=json_schema(SCHEMA), temperature=temperature, seed=3,
                     max_tokens=100)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    found = json.loads(choice["message"]["content"])
    assert set(found) == {"sum", "exact"} and type(found["sum"]) is int and type(found["exact"]) is bool


@pytest.mark.parametrize("fields", [
    {"response_format": json_schema(SCHEMA)}, {"regex": "[a-f]{3}-[0-9]{2}/é"}, {"choice": ["left", "ri\"ght\n"]},
    {"grammar": "start: WORD \" \" WORD\nWORD: /[a-z]{1,5}/"}], ids=lambda fields: next(iter(fields)))
def test_a_streamed_answer_is_the_unstreamed_one(api, fields):
    options = {"messages": QUESTION, "temperature": 1.2, "seed": 5, "max_tokens": 100, **fields}
    whole = api.ask(CHAT, **options)["choices"][0]["message"]["content"]
    chunks = api.stream(CHAT, **options)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]) == whole
    if "regex" in fields:
        assert re.fullmatch(fields["regex"], whole)
    if "choice" in fields:
        assert whole in fields["choice"]
    if "grammar" in fields:
        assert re.fullmatch("[a-z]{1,5} [a-z]{1,5}", whole)


def test_any_json_object_is_an_object(api):
    answer = api.ask(CHAT, messages=QUESTION, response_format={"type": "json_object"}, temperature=0, max_tokens=200)
    choice = answer["choices"][0]
    assert choice["message"]["content"].startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_completion_and_each_of_several_choices_follow_a_regex(api):
    answer = api.ask("/v1/completions", prompt="One plus one is", regex=" ?[0-9]{1,3}", n=3, temperature=2.0, seed=1)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 3 and all(re.fullmatch(" ?[0-9]{1,3}", text) for text in texts)


@pytest.mark.parametrize(("fields", "name", "words"), [
    ({"response_format": {"type": "xml"}}, "response_format", "'text', 'json_object', 'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "has no schema"),
    ({"response_format": json_schema({"type": "strng"})}, "response_format", "Invalid type: strng"),
    ({"response_format": json_schema({"$ref": "file:///etc/passwd"})}, "response_format", "does not fetch resources"),
    ({"response_format": json_schema({"type": "integer", "multipleOf": 123456789})}, "response_format", "too complex"),
    ({"response_format": json_schema(False)}, "response_format.json_schema.schema", "valid dictionary"),
    ({"response_format": json_schema({"type": "integer", "minimum": 5, "maximum": 1})}, "response_format",
     "Unsatisfiable"),
    ({"regex": "(?=a)b"}, "regex", "look-around"),
    ({"regex": "a", "choice": ["a"]}, "regex", "regex and choice cannot both be followed"),
    ({"choice": [""]}, "choice", "none empty"),
    ({"grammar": "start: nothing"}, "grammar", 'unknown name: "nothing"'),
    ({"grammar": "\n".join(["start: r0", *(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(5000)), 'r5000: "b"'])},
     "grammar", "too complex"),
], ids=str)
def test_what_cannot_be_followed_is_refused(api, fields, name, words):
    response = api.post(CHAT, messages=QUESTION, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert words in error["message"] and "\n" not in error["message"]


def test_others_are_answered_while_schemas_that_never_end_are_refused(api):
    nasty = [json_schema({"type": "integer", "multipleOf": 123456789 + index}) for index in range(8)]
    with ThreadPoolExecutor(12) as threads:
        refused = [threads.submit(api.post, CHAT, messages=QUESTION, response_format=schema) for schema in nasty]
        answered = [threads.submit(api.post, CHAT, messages=QUESTION, max_tokens=4) for _ in range(4)]
        assert {response.result().status_code for response in refused} == {400}
        assert {response.result().status_code for response in answered} == {200}


def test_many_new_grammars_at_once_are_all_followed(api):
    with ThreadPoolExecutor(60) as threads:
        asked = [threads.submit(api.ask, CHAT, messages=QUESTION, regex=f"{index}[ab]") for index in range(60)]
        answers = [answer.result()["choices"][0]["message"]["content"] for answer in asked]
    assert {answer[:-1] for answer in answers} == {str(index) for index in range(60)}
    assert {answer[-1] for answer in answers} <= {"a", "b"}
