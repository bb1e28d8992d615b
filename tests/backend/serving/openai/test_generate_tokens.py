"""/generate and /v1/abort on the demo model."""

from __future__ import annotations

import json
import threading

import pytest

PATH = "/generate"
PROMPT = "Once upon a time, a fox"


def ask(api, **fields):
    response = api.client.post(PATH, json={"temperature": 0, "max_tokens": 20, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_ids_in_and_ids_out(api):
    ids = api.context.front_end.prompt_ids(PROMPT)
    by_ids, by_text = ask(api, input_ids=ids), ask(api, prompt=PROMPT)
    assert by_ids["output_ids"] == by_text["output_ids"] and len(by_ids["output_ids"]) == 20
    assert PROMPT + by_ids["text"] == api.context.front_end.tokenizer.decode([*ids, *by_ids["output_ids"]])
    meta = by_ids["meta_info"]
    assert meta["finish_reason"] == {"type": "length"} and meta["id"].startswith("gen-")
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(ids), 20)


def test_a_stream_adds_up_to_the_unstreamed_answer(api):
    fields = {"prompt": PROMPT, "return_logprob": True, "stop": ["zebra"]}
    whole = ask(api, **fields)
    text = api.client.post(PATH, json={"temperature": 0, "max_tokens": 20, "stream": True, **fields}).text
    *events, done = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    parts = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [token for part in parts for token in part["output_ids"]] == whole["output_ids"]
    logprobs = [pair for part in parts for pair in part["meta_info"]["output_token_logprobs"]]
    assert [token for _, token in logprobs] == whole["output_ids"]
    assert logprobs == [pytest.approx(pair, abs=1e-4) for pair in whole["meta_info"]["output_token_logprobs"]]
    assert all(logprob <= 0 for logprob, _ in logprobs)


@pytest.mark.parametrize("fields, words", [
    ({}, "give either prompt or input_ids"),
    ({"prompt": "a", "input_ids": [1]}, "give either prompt or input_ids"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [10**6]}, "vocabulary"),
    ({"prompt": "a", "n": 2}, "n"),
    ({"prompt": "a", "max_tokens": 5000}, "session_len"),
])
def test_what_cannot_be_done_is_400_with_the_cure(api, fields, words):
    response = api.client.post(PATH, json=fields)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_an_answer_under_way_can_be_aborted_by_its_id(api):
    asked = {"prompt": PROMPT, "stream": True, "ignore_eos": True}
    with api.client.stream("POST", PATH, json=asked) as response:
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        answer_id = json.loads(next(events))["meta_info"]["id"]
        aborting = threading.Thread(target=lambda: api.client.post("/v1/abort", json={"id": answer_id}))
        aborting.start()
        *_, last, done = events
        aborting.join()
    assert json.loads(last)["meta_info"]["finish_reason"] == {"type": "abort"} and done == "[DONE]"
    assert json.loads(last)["meta_info"]["completion_tokens"] < 900


@pytest.mark.parametrize("fields, status", [({"id": "gen-0"}, 404), ({"session_id": 98}, 404), ({}, 400)])
def test_what_is_not_under_way_cannot_be_aborted(api, fields, status):
    assert api.client.post("/v1/abort", json=fields).status_code == status
