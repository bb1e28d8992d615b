"""/v1/completions on the demo model."""

from __future__ import annotations

import json

import pytest

from tests.backend.serving.openai.conftest import serving

PATH = "/v1/completions"
TEXT = "The fox and the rabbit went to"
ATOL = 1e-4  # float32, in batches of other sizes


def test_a_list_of_prompts_gives_n_choices_each_in_order(api):
    answer = api.ask(PATH, prompt=[TEXT, "2 + 3 ="], n=2, seed=3, max_tokens=8)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [api.ask(PATH, prompt=prompt, seed=seed, max_tokens=8)["choices"][0]["text"]
             for prompt in (TEXT, "2 + 3 =") for seed in (3, 4)]
    assert [choice["text"] for choice in answer["choices"]] == alone
    assert answer["usage"]["completion_tokens"] <= 32


def test_token_ids_are_a_prompt_as_their_text_is(api):
    ids = api.context.front_end.prompt_ids(TEXT)
    by_text, by_ids, in_list = (api.ask(PATH, prompt=prompt, temperature=0)["choices"][0]["text"]
                                for prompt in (TEXT, ids, [ids]))
    assert by_text == by_ids == in_list and by_text


def test_echo_brings_the_prompt_with_the_logprobs_that_generating_it_had(api):
    generated = api.ask(PATH, prompt=TEXT, temperature=0, max_tokens=12, logprobs=2)["choices"][0]
    prompt_ids = api.context.front_end.prompt_ids(TEXT)
    whole_ids = api.context.front_end.prompt_ids(TEXT + generated["text"])
    for max_tokens in (0, 1):
        choice = api.ask(PATH, prompt=whole_ids, echo=True, logprobs=2, max_tokens=max_tokens,
                         temperature=0)["choices"][0]
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) >= len(whole_ids) and choice["finish_reason"] in ("length", "stop")
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        count = len(whole_ids) - len(prompt_ids)  # without the id that ended the answer
        assert whole_ids[:len(prompt_ids)] == prompt_ids
        assert logprobs["token_logprobs"][len(prompt_ids):len(prompt_ids) + count] == pytest.approx(
            generated["logprobs"]["token_logprobs"][:count], abs=ATOL)
        begins = list(zip(logprobs["text_offset"], logprobs["text_offset"][1:], strict=False))
        assert all(begin <= end for begin, end in begins)
        for token, (begin, end) in list(zip(logprobs["tokens"], begins, strict=False))[1:]:
            assert choice["text"][begin:end] == (token if begin else token.lstrip())


def test_echo_of_a_text_is_that_text_then_the_completion(api):
    plain = api.ask(PATH, prompt=TEXT, temperature=0)["choices"][0]["text"]
    assert api.ask(PATH, prompt=TEXT, temperature=0, echo=True)["choices"][0]["text"] == TEXT + plain


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_and_unstreamed_completions_are_equal(api, echo):
    fields = {"prompt": [TEXT, "Once"], "n": 2, "seed": 11, "max_tokens": 24, "logprobs": 3, "echo": echo,
              "stop": ["and", "."], "temperature": 1.0}
    whole = api.ask(PATH, **fields)
    events = api.stream(PATH, stream_options={"include_usage": True}, **fields)
    for choice in whole["choices"]:
        mine = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            joined = [value for part in mine for value in part["logprobs"][name]]
            assert joined == values or (name in ("token_logprobs", "top_logprobs") and len(joined) == len(values))
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert events[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_a_second_request_s_prompt_comes_from_the_cache_and_is_counted():
    with serving(block_size=16) as api:
        prompt = "The fox and the rabbit went to the river and sat by the water until the sun went down. " * 2
        first, second = (api.ask(PATH, prompt=prompt, max_tokens=1)["usage"] for _ in range(2))
        assert first["prompt_tokens_details"] == {"cached_tokens": 0}
        assert 0 < second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"]


@pytest.mark.parametrize("fields, param", [
    ({"prompt": TEXT, "suffix": "x"}, "suffix"),
    ({"prompt": TEXT, "n": 2, "best_of": 3}, "best_of"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["x"] * 600, "n": 2}, "n"),
    ({"prompt": [[1], "x"]}, None),
    ({"prompt": [99_999_999]}, None),
    ({"prompt": TEXT, "logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"prompt": TEXT, "repetition_penalty": 1e-38}, "repetition_penalty"),
    ({"prompt": TEXT, "a\ud800": 1}, None),
])
def test_what_is_wrong_is_refused_with_its_name(api, fields, param):
    response = api.client.post(PATH, content=json.dumps({"model": "demo", **fields}),
                               headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error", error
    if param is not None:
        assert error["param"] == param, error


def test_a_bias_of_100_forces_a_token_and_stop_ids_end_without_it(api):
    tokenizer = api.context.front_end.tokenizer
    fox, = tokenizer.encode(" fox")[-1:]
    forced = api.ask(PATH, prompt=TEXT, logit_bias={str(fox): 100}, max_tokens=3)["choices"][0]
    assert forced["text"].count("fox") == 3
    stopped = api.ask(PATH, prompt=TEXT, logit_bias={str(fox): 100}, max_tokens=3, stop_token_ids=[fox])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")
    later = api.ask(PATH, prompt=TEXT, logit_bias={str(fox): 100}, max_tokens=5, min_tokens=2, stop_token_ids=[fox])
    assert later["usage"]["completion_tokens"] >= 3


def test_a_stop_text_ends_no_answer_before_min_tokens_streamed_or_not(api):
    fields = {"prompt": TEXT, "temperature": 0, "ignore_eos": True, "max_tokens": 12}
    word = api.ask(PATH, **fields)["choices"][0]["text"].split()[0]
    assert api.ask(PATH, **fields, stop=word)["choices"][0]["text"].strip() == ""
    whole = api.ask(PATH, **fields, stop=word, min_tokens=10)
    assert whole["usage"]["completion_tokens"] > 10 and word in whole["choices"][0]["text"]
    events = api.stream(PATH, **fields, stop=word, min_tokens=10)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
