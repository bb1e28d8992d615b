"""Errors: whatever is wrong with a call is told in one shape, with the field's name and a cure."""

from __future__ import annotations

import gzip
import json

import pytest

CHAT = "/v1/chat/completions"
BODY = {"model": "internlm2", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}


def error_of(response, status=400):
    """The error that an answer has, whose message is one line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"},
                                     {"content-type": "text/plain"}, {"content-type": "application/json; charset=x"}])
def test_a_body_is_json_whatever_its_type_says(api, headers):
    response = api.client.post(CHAT, content=json.dumps(BODY), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_a_web_page_has_to_say_json_so_that_its_browser_asks_first(api, headers):
    origin = {"origin": "https://elsewhere.example"}
    error = error_of(api.client.post(CHAT, content=json.dumps(BODY), headers={**headers, **origin}))
    assert "Content-Type: application/json" in error["message"] and error["param"] == "Content-Type"
    assert api.client.post(CHAT, json=BODY, headers=origin).status_code == 200


@pytest.mark.parametrize("body, cure", [
    ('{"prompt": "café"}'.encode("latin-1"), "send UTF-8"),
    (gzip.compress(b"{}", mtime=0), "not compressed"),
    (b"[" * 100_000, "flatter"),
    (b'{"seed": ' + b"1" * 5000 + b"}", "shorter"),
    (b"{'model': 1}", "send a JSON object"),
])
def test_a_body_that_cannot_be_read_is_invalid_json_with_the_cure(api, body, cure):
    error = error_of(api.client.post(CHAT, content=body))
    assert error["code"] == "invalid_json" and cure in error["message"]


def test_a_slash_too_many_is_no_redirect(api):
    assert error_of(api.client.post(CHAT + "/", json=BODY), status=404)["code"] == "not_found"


def asked(api, path, fields):
    """A body as it stands, lone surrogates included."""
    named = {"model": "internlm2"} if path.startswith(("/v1/chat/completions", "/v1/completions")) else {}
    return api.client.post(path, content=json.dumps({**named, **fields}))


HELLO = {"role": "user", "content": "Hello!"}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize("path, fields, param", [
    (CHAT, {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    (CHAT, {"messages": [HELLO], "chat_template_kwargs": {"tools": [1]}}, "chat_template_kwargs"),
    (CHAT, {"messages": [HELLO, {"role": "assistant", "tool_calls": [CALL]},
                         {"role": "tool", "tool_call_id": "zz", "content": "1"}]}, "messages[2].tool_call_id"),
    (CHAT, {"messages": [HELLO, {"role": "assistant", "tool_calls": [
        {**CALL, "function": {"name": "add", "arguments": "3"}}]}]}, "messages[1].tool_calls"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, None),
    (CHAT, {"messages": [HELLO], "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("/v1/completions", {"prompt": ["a"] * 1025}, "prompt"),
    ("/v1/completions", {"prompt": [99_999]}, "prompt"),
    ("/v1/completions", {"prompt": [99_999], "echo": True}, "prompt"),
    ("/generate", {"input_ids": [99_999]}, "input_ids"),
    ("/detokenize", {"tokens": [99_999]}, "tokens"),
    ("/v1/chat/interactive", {"prompt": "a", "session_id": 99, "step": 4}, "session_id"),
    ("/v1/chat/interactive", {"prompt": "", "interactive_mode": True}, "prompt"),
    ("/v1/chat/interactive", {"prompt": "", "session_id": -1}, "session_id"),
])
def test_a_fault_is_named_with_its_field_and_a_code(api, path, fields, param):
    error = error_of(asked(api, path, fields))
    assert (error["param"], error["code"]) == (param, "invalid_value"), error
    assert param is None or "prompt holds" not in error["message"] or param == "prompt"


MESSAGES = [
    ([{"role": "user"}], ".content", "missing"),
    ([{"role": "user", "content": None}], ".content", "missing"),
    ([{"role": "assistant", "content": None, "tool_calls": []}], ".content", "missing"),
    ([{**HELLO, "tool_calls": [CALL]}], ".tool_calls", "role user"),
    ([{"role": "system", "content": "a", "tool_calls": [CALL]}], ".tool_calls", "role system"),
    ([{**HELLO, "tool_call_id": "a"}], ".tool_call_id", "use the role tool"),
    ([{**HELLO, "annotations": [{}]}], ".annotations", "leave it out"),
    ([{**HELLO, "parsed": {}}], ".parsed", "leave it out"),
    ([{**HELLO, "refusal": "no"}], ".refusal", "leave it out"),
    ([{**HELLO, "colour": "red"}], ".colour", "leave it out"),
    ([{"role": "function", "content": "a", "name": "b"}], ".role", "'tool'"),
    ([{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "["}}]}], ".tool_calls",
     "not JSON"),
]


@pytest.mark.parametrize("path, field", [(CHAT, "messages"), ("/v1/chat/interactive", "prompt")])
@pytest.mark.parametrize("messages, name, words", MESSAGES)
def test_what_has_no_place_in_a_message_is_refused(api, path, field, messages, name, words):
    error = error_of(asked(api, path, {field: messages}))
    assert error["param"] == f"{field}[0]{name}" and error["code"], error
    assert error["param"] in error["message"] and words in error["message"], error


@pytest.mark.parametrize("path, field", [(CHAT, "messages"), ("/v1/chat/interactive", "prompt")])
def test_what_clients_send_back_with_an_answer_changes_nothing(api, path, field):
    given = [HELLO, {"role": "assistant", "content": "Hi."}, HELLO]
    sent = [{**HELLO, "name": "Anna", "tool_calls": None, "tool_call_id": None},
            {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "parsed": {"a": 1},
             "audio": None, "function_call": None, "tool_calls": []}, HELLO]
    tokens = [asked(api, path, {field: messages, "temperature": 0}) for messages in (given, sent)]
    first, second = (response.json() for response in tokens)
    assert first.get("usage") == second.get("usage") and first.get("input_tokens") == second.get("input_tokens")
    assert [response.status_code for response in tokens] == [200, 200]


def test_many_prompts_are_told_how_many_are_allowed(api):
    assert "at most 1024" in error_of(asked(api, "/v1/completions", {"prompt": ["a"] * 1025}))["message"]


@pytest.mark.parametrize("path, fields, param", [
    (CHAT, {"messages": [HELLO], "max_tokens": 5000}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "fox " * 3000}], "stream": True}, "messages"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 5000}, "prompt"),
    ("/v1/responses", {"input": "a", "max_output_tokens": 5000}, "input"),
    ("/generate", {"input_ids": [5], "max_tokens": 5000}, "input_ids"),
    ("/generate", {"prompt": "a", "max_tokens": 5000}, "prompt"),
    ("/v1/chat/interactive", {"prompt": "a", "request_output_len": 5000}, "prompt"),
])
def test_too_long_a_prompt_names_its_field(api, path, fields, param):
    error = error_of(asked(api, path, fields))
    assert (error["param"], error["code"]) == (param, "context_length_exceeded"), error


@pytest.mark.parametrize("fields, param", [({"session_id": 999}, "session_id"), ({"id": "chatcmpl-1"}, "id")])
def test_what_is_not_under_way_cannot_be_aborted(api, fields, param):
    error = error_of(api.client.post("/v1/abort", json=fields), status=404)
    assert (error["param"], error["code"]) == (param, "not_found") and "start it" not in error["message"]
