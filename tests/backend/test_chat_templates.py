from __future__ import annotations

import pytest

from backend.chat_templates import KNOWN_MODEL_NAMES, builtin_template
from backend.errors import TemplateError


@pytest.mark.parametrize("model_name, template", [
    ("internlm", "internlm"), ("internlm-7b", "base"), ("internlm-chat-7b", "internlm"),
    ("internlm-chat-7b-8k", "internlm"), ("internlm-chat-20b", "internlm"), ("internlm-20b", "base"),
    ("internlm2", "internlm2"), ("internlm2-chat-7b", "internlm2"), ("internlm2-7b", "base"),
    ("internlm2-math-7b", "internlm2"), ("internlm2.5", "internlm2"), ("internlm2_5-7b-chat", "internlm2"),
    ("internlm2_5-1_8b", "base"), ("internlm2-chat-1_8b", "internlm2"),
    ("llama", "base"), ("llama-7B", "base"), ("llama2", "llama2"), ("llama-2-7b-chat", "llama2"),
    ("Llama-2-7b-chat-hf", "llama2"), ("Llama-2-7b-hf", "base"), ("llama3", "llama3"),
    ("Meta-Llama-3-8B-Instruct", "llama3"), ("llama3.1", "llama3.1"), ("llama3_1", "llama3.1"),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1"), ("Llama-3.2-1B", "base"), ("codellama", "llama2"),
    ("vicuna", "vicuna"), ("vicuna-13B", "vicuna"), ("vicuna-13b-v1.5", "vicuna"),
    ("qwen", "qwen2"), ("qwen-7b", "qwen2"), ("qwen-14b", "qwen2"), ("qwen1.5-7b-chat", "qwen2"), ("qwen2", "qwen2"),
    ("Qwen2.5-0.5B-Instruct", "qwen2.5"), ("qwen3", "qwen3"), ("Qwen3-8B", "qwen3"),
    ("mistral", "mistral"), ("Mistral-7B-Instruct-v0.2", "mistral"), ("Mistral-7B-v0.1", "base"),
    ("mixtral-8x7b-instruct", "mistral"), ("chatml", "chatml"), ("base", "base"),
])
def test_names_that_users_type_mean_their_family(model_name, template):
    assert builtin_template(model_name).name == template


@pytest.mark.parametrize("model_name", KNOWN_MODEL_NAMES)
def test_every_listed_name_is_known(model_name):
    builtin_template(model_name)


@pytest.mark.parametrize("model_name, nearest", [("internml", "internlm"), ("vicunna", "vicuna"), ("lama2", "llama2")])
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(model_name, nearest):
    with pytest.raises(TemplateError) as error:
        builtin_template(model_name)
    assert f"did you mean {nearest!r}?" in str(error.value)
    assert all(name in str(error.value) for name in KNOWN_MODEL_NAMES)


@pytest.mark.parametrize("model_name", ["", "  ", "gpt", "internlmx", "xllama"])
def test_a_name_that_only_resembles_a_family_is_unknown(model_name):
    with pytest.raises(TemplateError, match="no chat template is known"):
        builtin_template(model_name)
