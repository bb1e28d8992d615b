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
    (gzip.compress(b"{}"), "not compressed"),
    (b"[" * 100_000, "flatter"),
    (b'{"seed": ' + b"1" * 5000 + b"}", "shorter"),
    (b"{'model': 1}", "send a JSON object"),
])
def test_a_body_that_cannot_be_read_is_invalid_json_with_the_cure(api, body, cure):
    error = error_of(api.client.post(CHAT, content=body))
    assert error["code"] == "invalid_json" and cure in error["message"]


def test_a_slash_too_many_is_no_redirect(api):
    assert error_of(api.client.post(CHAT + "/", json=BODY), status=404)["code"] == "not_found"
