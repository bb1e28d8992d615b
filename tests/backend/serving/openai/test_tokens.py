"""/tokenize, /detokenize, /tokenizer_info and /v1/encode on the demo model's tokenizer."""

from __future__ import annotations

import pytest

TEXT = "Once upon a time, a fox's café 咖啡 <|im_end|>"
QUESTION = [{"role": "user", "content": "Hello!"}]


def test_a_text_survives_the_way_there_and_back(api):
    answer = api.ask("/tokenize", prompt=TEXT, return_token_strs=True)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 1024
    assert answer["tokens"] == api.context.front_end.prompt_ids(TEXT)
    back = api.ask("/detokenize", tokens=answer["tokens"])["prompt"]
    assert back.removeprefix("<s>").strip() == TEXT


def test_a_conversation_is_tokenised_as_a_chat_would_be(api):
    ids = api.ask("/tokenize", messages=QUESTION)["tokens"]
    assert ids == api.context.front_end.chat_ids(QUESTION)
    shorter = api.ask("/tokenize", messages=QUESTION, add_generation_prompt=False)["tokens"]
    assert ids[:len(shorter)] == shorter and len(shorter) < len(ids)
    used = api.ask("/v1/chat/completions", messages=QUESTION, max_tokens=1)["usage"]["prompt_tokens"]
    assert used == len(ids)


def test_special_tokens_are_added_to_a_prompt_unless_it_is_said_otherwise(api):
    plain = api.ask("/tokenize", prompt="fox", add_special_tokens=False)["tokens"]
    assert api.ask("/tokenize", prompt="fox")["tokens"] == [api.context.front_end.tokenizer.bos_token_id, *plain]


def test_tokenizer_info_is_enough_to_write_a_conversation(api):
    info = api.client.get("/tokenizer_info").json()
    front_end = api.context.front_end
    assert (info["vocab_size"], info["model_max_length"]) == (front_end.tokenizer.vocab_size, 1024)
    assert info["special_tokens"][info["eos_token"]] == info["eos_token_id"] == front_end.tokenizer.eos_token_id
    assert info["bos_token_id"] == front_end.tokenizer.bos_token_id
    assert "<|im_start|>" in info["chat_template"]


def test_encode_takes_one_text_or_several(api):
    one = api.client.post("/v1/encode", json={"input": "a fox"}).json()
    assert one["length"] == len(one["input_ids"])
    several = api.client.post("/v1/encode", json={"input": ["a fox", "", "foxes"]}).json()
    assert several["input_ids"][0] == one["input_ids"]
    assert several["length"] == [len(ids) for ids in several["input_ids"]]
    bare = api.client.post("/v1/encode", json={"input": "a fox", "add_bos": False}).json()
    assert bare["input_ids"] == one["input_ids"][1:]


def test_encode_writes_a_message_as_its_conversation_has_it(api):
    first = api.client.post("/v1/encode", json={"input": "Hello!", "do_preprocess": True}).json()["input_ids"]
    assert first == api.context.front_end.chat_ids(QUESTION)
    later = api.client.post("/v1/encode", json={"input": "Hello!", "do_preprocess": True, "add_bos": False}).json()
    assert later["input_ids"] == api.context.front_end.turn_ids(QUESTION[0], is_first=False)


@pytest.mark.parametrize("path, fields, words", [
    ("/tokenize", {}, "give either prompt or messages"),
    ("/tokenize", {"prompt": "a", "messages": QUESTION}, "give either prompt or messages"),
    ("/tokenize", {"prompt": "a", "colour": 1}, "colour"),
    ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
    ("/tokenize", {"messages": [{"role": "king", "content": "a"}]}, "king"),
    ("/detokenize", {"tokens": [10**6]}, "vocabulary"),
    ("/detokenize", {"tokens": "abc"}, "tokens"),
])
def test_what_cannot_be_done_is_400_with_its_name(api, path, fields, words):
    response = api.post(path, **fields)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


def test_a_wrong_model_is_404(api):
    assert api.client.post("/tokenize", json={"model": "gpt", "prompt": "a"}).status_code == 404
