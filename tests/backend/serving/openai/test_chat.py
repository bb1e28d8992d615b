"""/v1/chat/completions on the demo model."""

from __future__ import annotations

import asyncio

import pytest

PATH = "/v1/chat/completions"
STORY = [{"role": "user", "content": "Tell me a story about a fox and a rabbit."}]
CAPITAL = [{"role": "user", "content": "What is 12 plus 30?"}]


def text_of(events, index=0):
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"]
                   if choice["index"] == index)


def test_an_answer_has_openai_s_shape(api):
    answer = api.ask(PATH, messages=CAPITAL, temperature=0)
    choice, = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["model"] == "internlm2"
    assert choice["message"]["role"] == "assistant" and "42" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10


def test_streamed_and_unstreamed_answers_are_equal(api):
    fields = {"messages": STORY, "seed": 5, "max_tokens": 40, "n": 3, "logprobs": True, "top_logprobs": 2,
              "stop": [" the ", "zebra"], "temperature": 1.0}
    whole = api.ask(PATH, **fields)
    events = api.stream(PATH, stream_options={"include_usage": True}, **fields)
    for index, choice in enumerate(whole["choices"]):
        assert text_of(events, index) == choice["message"]["content"]
        mine = [part for event in events for part in event["choices"] if part["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["finish_reason"] == choice["finish_reason"]
        logprobs = [token for part in mine if part["logprobs"] for token in part["logprobs"]["content"]]
        assert [token["token"] for token in logprobs] == [token["token"] for token in choice["logprobs"]["content"]]
    assert events[-1]["choices"] == [] and all(event["usage"] is None for event in events[:-1])
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("fields, param", [
    ({"messages": CAPITAL, "colour": "red"}, "colour"),
    ({"messages": CAPITAL, "temperature": 3}, "temperature"),
    ({"messages": CAPITAL, "temperature": "1"}, "temperature"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    ({"messages": CAPITAL, "audio": {"voice": "x"}}, "audio"),
    ({"messages": CAPITAL, "stop": ["a"] * 17}, "stop"),
    ({"messages": CAPITAL, "top_logprobs": 3}, "top_logprobs"),
    ({"messages": CAPITAL, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"messages": CAPITAL, "min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    ({"messages": CAPITAL, "stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"messages": CAPITAL, "logit_bias": {"1000000": 1}}, "logit_bias"),
    ({}, "messages"),
])
def test_what_is_wrong_is_refused_with_its_name(api, fields, param):
    response = api.post(PATH, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error", error
    if param is not None:
        assert error["param"] == param, error
    assert not any(name in error["message"] for name in ("new_tokens", "stop_ids"))  # the engine's


def test_an_unknown_model_is_404(api):
    response = api.post(PATH, model="gpt-9", messages=CAPITAL)
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert api.client.get("/v1/nothing").status_code == 404
    assert api.client.get("/v1/models/demo").json()["id"] == "demo"
    assert api.client.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_conversation_is_told_in_numbers(api, stream):
    response = api.post(PATH, messages=CAPITAL, max_tokens=2000, stream=stream)
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "2000 new tokens" in error["message"] and "1024" in error["message"]


def test_too_many_stop_texts_are_refused_by_their_number(api):
    response = api.post(PATH, messages=CAPITAL, stop=["a"] * 17)
    assert response.status_code == 400 and "at most 16" in response.json()["error"]["message"]



def test_a_long_conversation_is_read_without_stopping_others(api):
    """It is longer than the context, so that it is refused once it has been tokenised."""
    long = [{"role": "user", "content": [{"type": "text", "text": "fox " * 20_000}]}]
    response = api.post(PATH, messages=long)
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def test_template_variables_reach_the_template_but_cannot_replace_the_conversation(api):
    assert api.ask(PATH, messages=CAPITAL, chat_template_kwargs={"enable_thinking": False}, max_tokens=2)
    response = api.post(PATH, messages=CAPITAL, chat_template_kwargs={"messages": []})
    assert response.status_code == 400 and "messages cannot be set" in response.json()["error"]["message"]


def test_a_text_is_continued_without_the_template(api):
    text = "The fox and the rabbit went to"
    continued = api.ask(PATH, messages=text, temperature=0, max_tokens=8)["choices"][0]["message"]["content"]
    assert continued == api.ask("/v1/completions", prompt=text, temperature=0, max_tokens=8)["choices"][0]["text"]


def test_developer_is_what_templates_call_system(api):
    answers = [api.ask(PATH, messages=[{"role": role, "content": "Be brief."}, *CAPITAL], temperature=0)
               for role in ("system", "developer")]
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]


def test_a_client_that_leaves_ends_its_answer(api):
    with api.client.stream("POST", PATH, json={"model": "demo", "messages": STORY, "ignore_eos": True,
                                               "max_tokens": 900, "stream": True}) as response:
        next(response.iter_lines())

    async def until_idle():
        engine = api.context.engine
        while (stats := await engine.stats()).num_running + stats.num_waiting + len(engine._waiting):
            await asyncio.sleep(0.01)
    api.run(asyncio.wait_for(until_idle(), 60))
