from __future__ import annotations

import pytest

from backend.chat_templates import builtin_template
from backend.text.chat_template import ChatTemplate
from backend.text.tokenizer import Tokenizer
from backend.text.tools.tool_format import find_format
from converter.tokenizer import prepare_tokenizer
from tests.backend.text.conftest import DEMO
from tests.tiny_tokenizers import write_byte_level_folder


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_byte_level_folder(tmp_path_factory.mktemp("byte level")))


def from_source(source: str) -> ChatTemplate:
    return ChatTemplate("the test's template", {"default": source}, {})


def test_the_demo_model_writes_internlms_format(tmp_path):
    prepare_tokenizer(DEMO, tmp_path, None)
    tool_format = find_format(ChatTemplate.load(tmp_path), Tokenizer(tmp_path))
    assert tool_format.name == "InternLM2.5"
    assert tool_format.special == {"<|action_start|>", "<|action_end|>", "<|plugin|>"}


@pytest.mark.parametrize("name, expected", [("qwen2.5", "Hermes"), ("qwen3", "Hermes"), ("llama3.1", "Llama 3.1")])
def test_a_built_in_template_shows_the_format(byte_level, name, expected):
    tool_format = find_format(from_source(builtin_template(name).source), byte_level)
    assert (tool_format.name, tool_format.special) == (expected, frozenset())


@pytest.mark.parametrize("source", [
    "{{ messages[0].content }}",  # takes no tools
    "{{ tools | tojson }}[TOOL_CALLS]",
    "{{ tools | tojson }}<tool_call>\n<function=name>\n<parameter=a>\n",  # calls as XML
    builtin_template("internlm2").source,  # in a vocabulary without its markers
])
def test_a_format_that_is_not_known_is_none(byte_level, source):
    assert find_format(from_source(source), byte_level) is None




@pytest.mark.parametrize("start, is_begun", [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)])
def test_a_prompt_that_opens_thoughts_is_noticed(byte_level, start, is_begun):
    source = builtin_template("qwen3").source + "{{ " + repr(start) + " }}"
    assert find_format(from_source(source), byte_level).is_begun == is_begun
    switch = "{% if enable_thinking is defined %}{% endif %}"
    assert not find_format(from_source(source + switch), byte_level).is_begun
