"""OpenAI wire: a stream of events is read the same however it is cut, and whoever wrote it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import RequestRefusedError, ServerFailedError, SessionFullError
from client.errors import HistoryNeededError
from client.openai_wire import AnswerReader, encode_chat, refusal
from client.wire import Increment

USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}


def event(delta: dict | None, reason: str | None = None, **fields: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], **fields}, ensure_ascii=False).encode() + b"\n\n"


STREAM = (b": hello\n\n" + event({"role": "assistant", "content": ""}) + event({"content": "naïve "})
          + event({"content": "狐"}) + event({"content": None}, "length")
          + b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n")
PARTS = [Increment("naïve ", None, 0, 0, 1, 0), Increment("狐", None, 0, 0, 2, 0), Increment("", "length", 5, 2, 4, 9)]


def read(*pieces: bytes) -> list[Increment]:
    reader = AnswerReader()
    return [part for piece in pieces for part in reader.feed(piece)] + reader.end()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_every_way_of_cutting_a_stream_reads_the_same(cuts):
    places = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in pairwise(places))) == PARTS


def test_lines_may_end_as_in_http():
    assert read(STREAM.replace(b"\n", b"\r\n")) == PARTS


def test_a_server_may_say_no_counts_and_no_done():
    assert read(event({"content": "a"}), event({}, "stop")) == [Increment("a", None, 0, 0, 1, 0),
                                                                Increment("", "stop", 0, 0, 1, 1)]


def test_a_stream_without_a_reason_has_not_ended():
    assert read(event({"content": "a"})) == [Increment("a", None, 0, 0, 1, 0)]


def test_an_answer_that_is_left_ends_once():
    reader = AnswerReader()
    reader.feed(event({"content": "a"}))
    assert reader.aborted() == [Increment("", "abort", 0, 0, 1, 1)] and reader.aborted() == reader.end() == []


@pytest.mark.parametrize(("data", "error", "words"), [
    (b'data: {"error": {"message": "it broke", "code": 500}}\n', ServerFailedError, "it broke"),
    (b'data: {"error": {"message": "too long", "code": "context_length_exceeded"}}\n', SessionFullError, "too long"),
    (b"data: {oops\n", ServerFailedError, "is no JSON"),
])
def test_an_error_among_the_events_is_raised(data, error, words):
    with pytest.raises(error, match=words):
        AnswerReader().feed(data)


@pytest.mark.parametrize(("body", "words"), [
    (b'{"error": {"message": "no"}}', "no"), (b'{"object": "error", "message": "no"}', "no"),
    (b'{"detail": "no"}', "no"), (b'{"error": "no"}', "no"), (b"<html>no</html>", "<html>no"), (b"", "no reason given"),
])
def test_the_words_of_every_kind_of_server_are_found(body, words):
    error = refusal(400, body, "http://host")
    assert isinstance(error, RequestRefusedError) and str(error).startswith(words)


def test_a_turn_that_leans_on_a_session_asks_for_the_history():
    with pytest.raises(HistoryNeededError):
        encode_chat({"PROMPT": "Hello", "START": 0, "STEP": 7, "CORRID": 1}, "model")


def test_a_number_that_json_has_not_is_refused():
    with pytest.raises(RequestRefusedError, match="cannot be sent as JSON"):
        encode_chat({"MESSAGES": "[]", "START": 1, "CORRID": 1, "TEMPERATURE": float("nan")}, "model")
