"""The checkpoint files: consistent with their config, and a model that does what the results say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from demo.chat_format import CHECKPOINT, ChatFormat
from demo.checks import is_correct
from demo.conversation import Message, read_jsonl
from demo.corpus import HELDOUT_PATH
from demo.evaluate import RESULTS_PATH, greedy
from demo.model import DemoConfig, InternLM2ForCausalLM, Past, load

MAX_FOLDER_BYTES = 25_000_000


def read(name: str) -> dict:
    return json.loads((CHECKPOINT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> InternLM2ForCausalLM:
    return load(CHECKPOINT, torch.float32)


def test_the_shards_hold_what_the_index_and_the_config_say():
    index, config = read("model.safetensors.index.json"), read("config.json")
    shapes = {}
    for file_name in set(index["weight_map"].values()):
        with safe_open(CHECKPOINT / file_name, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  safe_open is no mapping
                assert index["weight_map"][name] == file_name
                assert shard.get_slice(name).get_dtype() == "BF16"
                shapes[name] = tuple(shard.get_slice(name).get_shape())
    expected = InternLM2ForCausalLM(DemoConfig()).state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert len(set(index["weight_map"].values())) >= 2
    assert config == json.loads(json.dumps(DemoConfig().as_internlm2()))
    group = config["num_attention_heads"] // config["num_key_value_heads"] + 2
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    rows = config["num_key_value_heads"] * group * head_dim
    assert shapes["model.layers.0.attention.wqkv.weight"] == (rows, config["hidden_size"])


def test_the_end_of_a_turn_ends_generation():
    assert read("generation_config.json")["eos_token_id"] == [2, ChatFormat().special_id("<|im_end|>")]


def test_the_folder_stays_small():
    assert sum(file.stat().st_size for file in CHECKPOINT.parent.rglob("*") if file.is_file()) < MAX_FOLDER_BYTES


def test_decoding_with_past_gives_the_logits_of_the_whole_row(model):
    tokens = torch.tensor([[1, 500, 7, 42, 1000, 3]])
    past = [Past() for _ in range(model.config.num_layers)]
    with torch.inference_mode():
        whole = model(tokens)
        parts = [model.continue_from(past, part) for part in (tokens[:, :3], tokens[:, 3:4], tokens[:, 4:5])]
    torch.testing.assert_close(torch.stack(parts, 1), whole[:, 2:5], rtol=1e-4, atol=1e-4)


def test_the_model_recalls_a_name_and_knows_when_it_was_not_told(model):
    generate = greedy(model, ChatFormat())
    told = [Message("user", "My name is Alice."), Message("assistant", "Nice to meet you, Alice!")]
    question = Message("user", "What is my name?")
    assert generate([([*told, question], ()), ([question], ())]) == [
        "Your name is Alice.",
        "You have not told me your name yet.",
    ]


def test_the_model_answers_heldout_conversations(model):
    conversations = [c for c in read_jsonl(HELDOUT_PATH) if c.skill in ("arithmetic", "facts", "recall")][::30]
    answers = greedy(model, ChatFormat())([(c.prompt, c.tools) for c in conversations])
    assert all(is_correct(c.check, answer) for c, answer in zip(conversations, answers, strict=True))


def test_the_recorded_results_meet_the_bar():
    rows = json.loads(RESULTS_PATH.read_text(encoding="utf-8"))["greedy_fp32"]
    for name in ("story (en)", "story (zh)", "recall, 3 turns between", "tool call", "arithmetic"):
        assert rows[name]["correct"] >= 0.95, name
