"""/v1/chat/interactive on the demo model: chats whose memory the server keeps."""

from __future__ import annotations

import json
import threading
import time

import pytest

PATH = "/v1/chat/interactive"
STORY = "Tell me a story about a fox and a rabbit."


def turn(api, prompt, **fields):
    response = api.client.post(PATH, json={"prompt": prompt, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def lines(api, prompt, **fields):
    response = api.client.post(PATH, json={"prompt": prompt, "temperature": 0, "stream": True, **fields})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def whole_conversation(api, *messages):
    roles = ("user", "assistant")
    return api.ask("/v1/chat/completions", temperature=0, max_tokens=40, messages=[
        {"role": roles[index % 2], "content": content} for index, content in enumerate(messages)])


def test_a_turn_goes_on_where_the_session_stopped(api):
    first = turn(api, "My name is Anna.", session_id=7, interactive_mode=True, request_output_len=40)
    second = turn(api, "What is my name?", session_id=7, interactive_mode=True, request_output_len=40)
    expected = whole_conversation(api, "My name is Anna.", first["text"], "What is my name?")
    assert second["text"] == expected["choices"][0]["message"]["content"]
    assert (first["history_tokens"], second["history_tokens"]) == (0, first["session_tokens"])
    assert first["session_tokens"] == first["input_tokens"] + first["tokens"] - 1  # the id that ended it is forgotten
    assert second["history_tokens"] + second["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert turn(api, "", session_id=7, request_output_len=0) == {
        "text": "", "tokens": 0, "input_tokens": 0, "history_tokens": 0, "finish_reason": "stop", "session_id": 7,
        "session_tokens": 0}
    assert turn(api, "What is my name?", session_id=7, request_output_len=1)["history_tokens"] == 0


def test_without_interactive_mode_nothing_is_kept(api):
    before = api.run(api.context.engine.stats()).num_sessions
    answer = turn(api, "Hello!", request_output_len=5)
    turn(api, "Hello!", session_id=8, request_output_len=5)
    assert answer["session_id"] == -1
    assert api.run(api.context.engine.stats()).num_sessions == before


def test_minus_one_draws_a_session_and_names_it(api):
    first = turn(api, "My name is Anna.", interactive_mode=True, request_output_len=10)
    other = turn(api, "My name is Anna.", interactive_mode=True, request_output_len=10)
    assert first["session_id"] != other["session_id"] and min(first["session_id"], other["session_id"]) >= 2**32
    for answer in (first, other):
        later = turn(api, "What is my name?", session_id=answer["session_id"], request_output_len=10)
        assert later["history_tokens"] == answer["session_tokens"]


def test_lines_of_a_stream_add_up_to_the_unstreamed_answer(api):
    fields = {"request_output_len": 30, "stop": [" rabbit"], "seed": 3}
    whole = turn(api, STORY, session_id=9, **fields)
    parts = lines(api, STORY, session_id=9, **fields)
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert {**parts[-1], "text": ""} == {**whole, "text": ""}
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)


@pytest.mark.parametrize("later", [0, 1, 8])
def test_a_stop_text_is_not_part_of_the_session_though_the_engine_ends_the_answer_first(api, later):
    """later: tokens that the engine may generate after the stop text."""
    free = turn(api, STORY, request_output_len=12)["text"]
    stop = free[-4:]
    assert free.count(stop) == 1
    asked = {"session_id": 13, "interactive_mode": True, "request_output_len": 12 + later}
    first = turn(api, STORY, stop=[stop], **asked)
    assert (first["text"], first["finish_reason"]) == (free[:-4], "stop")
    assert first["session_tokens"] < first["input_tokens"] + 12
    second = turn(api, "Hello!", session_id=13, request_output_len=1)
    assert second["history_tokens"] == first["session_tokens"]


def test_step_goes_back_to_an_earlier_point(api):
    first = turn(api, "My name is Anna.", session_id=10, interactive_mode=True, request_output_len=10)
    asked = {"session_id": 10, "interactive_mode": True, "request_output_len": 20, "step": first["session_tokens"]}
    second = turn(api, "What is my name?", **asked)
    again = turn(api, "What is my name?", **asked)
    assert (again["text"], again["history_tokens"]) == (second["text"], first["session_tokens"])
    beyond = api.client.post(PATH, json={"prompt": "Hello!", **asked, "step": 99_999}).json()["error"]
    assert (beyond["param"], beyond["code"]) == ("step", "invalid_value")
    afresh = turn(api, "Hello!", session_id=10, step=0, request_output_len=1)
    assert afresh["history_tokens"] == 0


def test_a_list_of_messages_begins_a_session_afresh(api):
    messages = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "Hello!"}]
    turn(api, "Hello!", session_id=11, interactive_mode=True, request_output_len=5)
    answer = turn(api, messages, session_id=11, request_output_len=5)
    assert answer["history_tokens"] == 0
    assert answer["input_tokens"] == len(api.context.front_end.chat_ids(messages))


@pytest.mark.parametrize("path, fields", [(PATH, {"prompt": "", "cancel": True}), ("/v1/abort", {})])
def test_a_running_turn_can_be_cancelled_and_the_session_goes_on(api, path, fields):
    parts = []

    def read():
        asked = {"prompt": STORY, "session_id": 12, "interactive_mode": True, "stream": True, "ignore_eos": True}
        with api.client.stream("POST", PATH, json=asked) as response:
            parts.extend(json.loads(line) for line in response.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    while api.run(api.context.engine.stats()).num_running == 0:
        time.sleep(0.01)
    assert api.client.post(path, json={"session_id": 12, **fields}).status_code == 200
    reader.join()
    assert parts[-1]["finish_reason"] == "abort"
    assert turn(api, "Hello!", session_id=12, request_output_len=1)["history_tokens"] > 0


@pytest.mark.parametrize("fields, words", [
    ({"prompt": "", "request_output_len": 0}, "session_id"),
    ({"prompt": "", "interactive_mode": True, "session_id": 1}, "prompt is empty"),
    ({"prompt": "", "session_id": 99}, "not known"),
    ({"prompt": "a", "cancel": True}, "session_id"),
    ({"prompt": "a", "cancel": True, "session_id": 99}, "not known"),
    ({"prompt": "a", "session_id": 99, "step": 4}, "not known"),
    ({"prompt": "a", "step": 4}, "name it by session_id"),
    ({"prompt": [{"role": "user", "content": "a"}] * 2, "session_id": 99, "step": 4}, "one new message"),
    ({"prompt": "a", "image_url": "file:///etc/passwd"}, "image_url"),
    ({"prompt": "a", "n": 2}, "n"),
    ({"prompt": "a", "request_output_len": 5000}, "session_len"),
])
def test_what_cannot_be_done_is_400_with_the_cure(api, fields, words):
    response = api.client.post(PATH, json=fields)
    assert response.status_code == 400 and words in response.json()["error"]["message"]
