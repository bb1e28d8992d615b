"""The tokenizer files of the checkpoint: round trips, relabelled special tokens, and the chat template."""

from __future__ import annotations

import itertools
import json

import pytest

from demo.chat_format import CHECKPOINT, ChatFormat
from demo.conversation import Message
from demo.corpus import training_conversations
from demo.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE

ADD = {"name": "add", "description": "Add two numbers", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return ChatFormat()


@pytest.mark.parametrize("text", ["", "Hello, fox.", "  two  spaces \n\n", "你好，世界", "🎉 ñ 龘 \x00\t", "12345"])
def test_any_text_round_trips(chat_format, text):
    assert chat_format.decode(chat_format.encode(text)) == text


def test_whole_conversations_round_trip(chat_format):
    for conversation in itertools.islice(training_conversations(7), 300):
        text = chat_format.render(conversation.messages, conversation.tools)
        ids, is_answer = chat_format.encode_with_targets(conversation)
        assert ids == chat_format.encode(text)
        assert chat_format.decode(ids) == text
        answers = [message.content + "<|im_end|>" for message in conversation.messages if message.role == "assistant"]
        answer_ids = [id_ for id_, wanted in zip(ids, is_answer, strict=True) if wanted]
        assert chat_format.decode(answer_ids) == "".join(answers)


def test_a_prompt_is_a_prefix_of_its_conversation(chat_format):
    for conversation in itertools.islice(training_conversations(8), 300):
        prompt = chat_format.encode(chat_format.render(conversation.prompt, conversation.tools, open_answer=True))
        assert chat_format.encode_with_targets(conversation)[0][: len(prompt)] == prompt


def test_special_tokens_are_the_last_ids_relabelled(chat_format):
    assert chat_format.vocab_size == VOCAB_SIZE
    first = VOCAB_SIZE - len(SPECIAL_TOKENS)
    assert [chat_format.special_id(text) for text in SPECIAL_TOKENS] == list(range(first, VOCAB_SIZE))
    assert chat_format.encode("<|im_end|>") == [chat_format.special_id("<|im_end|>")]


def test_digits_are_single_tokens(chat_format):
    assert len(chat_format.encode("1234")) == 4


def test_the_template_puts_the_tools_after_the_system_message(chat_format):
    text = chat_format.render([Message("system", "Be kind."), Message("user", "Hi")], [ADD], open_answer=True)
    assert text == (
        "<s><|im_start|>system\nBe kind.<|im_end|>\n"
        f"<|im_start|>system name=<|plugin|>\n[{json.dumps(ADD)}]<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_unwraps_openai_tools(chat_format):
    messages = [Message("user", "Hi")]
    assert chat_format.render(messages, [{"type": "function", "function": ADD}]) == chat_format.render(messages, [ADD])


def test_the_template_names_a_tool_result(chat_format):
    for role in ("environment", "tool"):
        text = chat_format.render([Message("user", "1+1?"), Message(role, "2")])
        assert text.endswith("<|im_start|>environment name=<|plugin|>\n2<|im_end|>\n")


def test_the_template_holds_no_remote_code():
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
