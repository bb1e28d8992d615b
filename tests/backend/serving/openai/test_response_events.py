"""The events of an answer of the Responses API: their order, their numbers, and what they add up to."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from backend.serving.openai.response_events import ResponseBuilder

HEAD = {"id": "resp_1", "object": "response", "error": None, "incomplete_details": None, "usage": None}
USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def parsed(data: bytes) -> list[dict]:
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, document = event.split("\n")
        events.append(json.loads(document.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_text_has_each_of_its_events_in_order():
    builder = ResponseBuilder(HEAD)
    events = parsed(builder.begin() + builder.text("Hel") + builder.text("lo\n") + builder.end(USAGE, None))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[6]["text"] == "Hello\n"
    item = events[8]["item"]
    assert item["content"][0]["text"] == "Hello\n" and item["status"] == "completed"
    assert events[2]["item"]["id"] == events[4]["item_id"] == item["id"]
    assert events[-1]["response"] == json.loads(json.dumps(builder.response))
    assert builder.response["output"] == [item] and builder.response["usage"] == USAGE


def test_calls_are_items_of_their_own():
    builder = ResponseBuilder(HEAD)
    data = builder.begin() + builder.text("I will add.")
    data += builder.call("call_1", "add") + builder.arguments('{"a":') + builder.arguments(" 1}")
    data += builder.call("call_2", "mul") + builder.arguments("{}") + builder.end(USAGE, None)
    events = parsed(data)
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    assert [item.get("name") for item in builder.response["output"]] == [None, "add", "mul"]
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert {event["item_id"] for event in deltas[:2]} == {added[1]["item"]["id"]}
    assert "".join(event["delta"] for event in deltas[:2]) == builder.response["output"][1]["arguments"] == '{"a": 1}'
    assert builder.response["output"][2]["call_id"] == "call_2"


def test_an_answer_cut_short_says_why():
    builder = ResponseBuilder(HEAD)
    *_, last = parsed(builder.begin() + builder.text("Once") + builder.end(USAGE, "max_output_tokens"))
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_failure_keeps_what_has_come():
    builder = ResponseBuilder(HEAD)
    *_, last = parsed(builder.begin() + builder.text("Once") + builder.fail("server_error", "gone"))
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][0]["content"][0]["text"] == "Once"


def test_an_empty_answer_is_an_empty_message():
    builder = ResponseBuilder(HEAD)
    builder.begin()
    builder.end(USAGE, None)
    assert builder.response["output"][0]["content"][0]["text"] == ""


PIECES = st.lists(st.one_of(st.text(max_size=5).map(lambda text: ("text", text)),
                            st.text(max_size=5).map(lambda text: ("arguments", text)), st.just(("call", ""))))


@given(PIECES)
def test_events_add_up_to_the_answer_whatever_comes(pieces):
    builder = ResponseBuilder(HEAD)
    data, is_in_call = builder.begin(), False
    for index, (kind, text) in enumerate(pieces):
        if kind == "call":
            data, is_in_call = data + builder.call(f"call_{index}", "add"), True
        elif kind == "arguments" and is_in_call:
            data += builder.arguments(text)
        elif kind == "text":
            data, is_in_call = data + builder.text(text), False
    events = parsed(data + builder.end(USAGE, None))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    grown: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] = grown.get(event["output_index"], "") + event["delta"]
    whole = [item["content"][0]["text"] if item["type"] == "message" else item["arguments"]
             for item in builder.response["output"]]
    assert whole == [grown.get(index, "") for index in range(len(whole))]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == (
        builder.response["output"])
