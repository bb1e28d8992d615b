from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from backend.chat_templates import builtin_template
from backend.errors import TemplateError
from backend.text.chat_template import ChatTemplate
from backend.text.tokenizer import Tokenizer
from converter.tokenizer import prepare_tokenizer
from tests.backend.text.conftest import DEMO
from tests.tiny_tokenizers import byte_level_tokenizer, write_byte_level_folder

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER, AGAIN = {"role": "user", "content": "p"}, {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "sys"}
TOOL = {"type": "function", "function": {"name": "add", "description": "加 <b>", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1, "文": "é"}'}}]}
BUILTINS = ("base", "internlm", "internlm2", "llama2", "llama3", "llama3.1", "vicuna", "qwen", "qwen2.5", "qwen3",
            "mistral", "chatml")


def builtin(model_name: str) -> ChatTemplate:
    template = builtin_template(model_name)
    return ChatTemplate(template.name, {"default": template.source}, SPECIAL, template.stop)


def from_source(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate("the test's template", {"default": source}, {**SPECIAL, **special})


VICUNA = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")


@pytest.mark.parametrize("name, first, later", [
    ("base", "<s>p", "q"),
    ("internlm", "<s><|User|>:p\n<|Bot|>:", "<eoa>\n<|User|>:q\n<|Bot|>:"),
    ("internlm2", "<s><|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n",
     "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
    ("llama2", "<s>[INST] p [/INST]", "</s><s>[INST] q [/INST]"),
    ("mistral", "<s>[INST] p [/INST]", "</s>[INST] q [/INST]"),
    ("llama3", "<s><|start_header_id|>user<|end_header_id|>\n\np<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n",
     "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("vicuna", f"<s>{VICUNA} USER: p ASSISTANT:", "</s>USER: q ASSISTANT:"),
    ("qwen", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
             "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n",
     "<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
])
def test_built_ins_write_turns_as_the_models_were_trained(name, first, later):
    template = builtin(name)
    assert template.render([USER]) == template.render_turn(USER, is_first=True) == first
    assert template.render_turn(AGAIN, is_first=False) == later


@pytest.mark.parametrize("name, text", [
    ("internlm", "<s><|System|>:sys\n<|User|>:p\n<|Bot|>:"),
    ("internlm2", "<s><|im_start|>system\nsys<|im_end|>\n<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"),
    ("llama2", "<s>[INST] <<SYS>>\nsys\n<</SYS>>\n\np [/INST]"),
    ("vicuna", "<s>sys USER: p ASSISTANT:"),
    ("qwen", "<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"),
])
def test_built_ins_write_a_system_message_where_the_models_expect_it(name, text):
    assert builtin(name).render([SYSTEM, USER]) == text


@pytest.mark.parametrize("name, stop", [
    ("base", ()), ("internlm", ("<eoa>",)), ("internlm2", ("<|im_end|>", "<|action_end|>")),
    ("llama3.1", ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")), ("vicuna", ("</s>",)), ("qwen", ("<|im_end|>",)),
])
def test_built_ins_name_what_ends_an_answer(name, stop):
    assert builtin(name).stop == stop


@pytest.mark.parametrize("name", BUILTINS)
@given(texts=st.lists(st.text(min_size=1), min_size=3, max_size=3))
@example(texts=["0", "0", "\ue000answer\ue000 \ue001\ue000question\ue000"])  # what the probe stands on
def test_held_text_with_answer_and_turn_is_the_text_of_the_whole_conversation(name, texts):
    template = builtin(name)
    if name in ("llama3", "llama3.1"):
        texts = [text.strip() or "x" for text in texts]  # these trim what they are given
    question, answer, turn = ({"role": role, "content": text}
                              for role, text in zip(("user", "assistant", "user"), texts, strict=True))
    gap = "" if template.render([USER, ANSWER, AGAIN]).startswith(template.render([USER]) + "a") else " "
    held = template.render([question]) + gap + answer["content"]
    assert held + template.render_turn(turn, is_first=False) == template.render([question, answer, turn])


def test_internlm2_writes_tools_calls_and_results_as_2_5_was_trained():
    text = builtin("internlm2").render([SYSTEM, USER, CALL, {"role": "tool", "content": "2"}], [TOOL])
    assert text == (
        "<s><|im_start|>system\nsys<|im_end|>\n<|im_start|>system name=<|plugin|>\n"
        + json.dumps([TOOL["function"]], ensure_ascii=False) + "<|im_end|>\n<|im_start|>user\np<|im_end|>\n"
        '<|im_start|>assistant\n<|action_start|><|plugin|>\n{"name": "add", "parameters": {"x": 1, "文": "é"}}'
        "<|action_end|><|im_end|>\n<|im_start|>environment name=<|plugin|>\n2<|im_end|>\n<|im_start|>assistant\n")


def test_internlm2_names_the_interpreters_messages():
    text = builtin("internlm2").render([{"role": "environment", "name": "interpreter", "content": "3"}])
    assert text.startswith("<s><|im_start|>environment name=<|interpreter|>\n3<|im_end|>\n")


def test_a_tool_result_can_be_the_next_turn():
    assert builtin("internlm2").render_turn({"role": "tool", "content": "2"}, is_first=False) == (
        "<|im_end|>\n<|im_start|>environment name=<|plugin|>\n2<|im_end|>\n<|im_start|>assistant\n")


PUBLISHED_STYLES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
              "'<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "indented": "{% for message in messages %}\n    {% if message.role == 'user' %}\n{{ message.content | trim }}\n"
                "    {% else %}\n        {% continue %}\n    {% endif %}\n{% endfor %}\n",
    "tools": "{{ bos_token }}{% if tools %}{{ tools | tojson(indent=4) }}{% endif %}"
             "{{ messages | tojson }}{{ eos_token }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
                  "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{{ messages[0].content }}{{ documents }}",
    "demo": (Path(__file__).parents[3] / "demo/chat_template.jinja").read_text("utf-8"),
}


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER, ANSWER, AGAIN]])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("style", PUBLISHED_STYLES)
def test_a_checkpoints_template_renders_as_in_transformers(style, tools, messages):
    source = PUBLISHED_STYLES[style]
    reference = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), **SPECIAL)
    template = from_source(source)
    if tools and "tools" not in source:
        return
    for add_generation_prompt in (True, False):
        assert template.render(messages, tools, add_generation_prompt) == reference.apply_chat_template(
            messages, tools, chat_template=source, add_generation_prompt=add_generation_prompt, tokenize=False)


def test_the_checkpoints_template_wins_over_the_name(tmp_path):
    folder = write_byte_level_folder(tmp_path, chat_template="own: {{ messages[0].content }}")
    assert ChatTemplate.load(folder, "vicuna").render([USER]) == "own: p"
    (folder / "chat_template.jinja").write_text("file: {{ messages[0].content }}")
    assert ChatTemplate.load(folder).render([USER]) == "file: p"


def test_the_name_chooses_where_the_checkpoint_brings_none(tmp_path):
    folder = write_byte_level_folder(tmp_path)
    assert ChatTemplate.load(folder, "chatml").stop == ("<|im_end|>",)
    with pytest.raises(TemplateError, match="brings no chat template; give a model name"):
        ChatTemplate.load(folder)
    with pytest.raises(TemplateError, match="no chat template is known for 'nothing'"):
        ChatTemplate.load(folder, "nothing")


def test_of_named_templates_the_one_for_tools_is_taken_with_tools(tmp_path):
    folder = write_byte_level_folder(tmp_path, chat_template=[
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].function.name }}"}])
    template = ChatTemplate.load(folder)
    assert (template.render([USER]), template.render([USER], [TOOL])) == ("plain", "add")


def test_what_ends_an_answer_is_read_off_the_checkpoints_template():
    assert from_source(PUBLISHED_STYLES["chatml"]).stop == ("<|im_end|>", "</s>")
    assert from_source(PUBLISHED_STYLES["demo"]).stop == ("<|im_end|>", "</s>")
    assert from_source("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}").stop == ("</s>",)
    assert from_source("{{ raise_exception('only with a system message') }}").stop == ("</s>",)


def test_stop_texts_that_are_tokens_become_ids(prefixed):
    template = ChatTemplate("x", {"default": ""}, SPECIAL, ("<|im_end|>", "</s>", "Human:"))
    ids, texts = template.stop_tokens(prefixed)
    assert ids == (prefixed.token_to_id("<|im_end|>"), 2)
    assert texts == ("Human:",)


@pytest.mark.parametrize("source", [
    "{{ messages[-1].content }}",  # forgets
    "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",  # counts
    "{% for m in messages %}{% if m.role == 'user' and loop.last %}last: {% endif %}{{ m.content }}{% endfor %}",
])
def test_a_template_that_rewrites_earlier_turns_cannot_append_one(source):
    with pytest.raises(TemplateError, match=r"rewrites earlier turns.*send the whole conversation with each request"):
        from_source(source).render_turn(AGAIN, is_first=False)


@pytest.mark.parametrize("messages, reason", [
    ([], "messages is empty"),
    ("hello", "messages is a str; give a list"),
    (["hello"], r"messages\[0\] is a str"),
    ([{"content": "x"}], r"messages\[0\].role is None; use one of system"),
    ([USER, {"role": "wizard", "content": "x"}], r"messages\[1\].role is 'wizard'"),
    ([{"role": "user"}], r"messages\[0\].content is missing; give text"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part that is no text"),
    ([{**CALL, "tool_calls": [{"function": {}}]}], "an entry without function.name"),
    ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "x: 1"}}]}], "arguments of f are not JSON"),
    ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "arguments of f are no JSON object"),
    ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "[" * 200_000}}]}], "are nested too deeply"),
    ([{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": '{"a":' * 200_000}}]}], "are nested too deeply"),
])
def test_a_wrong_message_is_refused_with_its_place(messages, reason):
    with pytest.raises(TemplateError, match=reason):
        builtin("internlm2").render(messages)


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "p"}, {"type": "text", "text": "q"}]
    assert builtin("base").render([{"role": "user", "content": parts}]) == "<s>pq"


def test_tools_are_refused_where_the_template_has_no_place_for_them():
    with pytest.raises(TemplateError, match="takes no tools"):
        builtin("vicuna").render([USER], [TOOL])
    with pytest.raises(TemplateError, match="tools is a dict; give a list"):
        builtin("internlm2").render([USER], TOOL)


TAKE_TOOLS = ("internlm2", "llama3.1", "qwen2.5", "qwen3")


@pytest.mark.parametrize("name", TAKE_TOOLS)
@pytest.mark.parametrize("arguments", ['{"city": "', "{", ' {"a": [1, {"b": tr'])
def test_a_call_that_was_cut_off_is_rendered_with_what_its_arguments_were(name, arguments):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    rendered = builtin(name).render([USER, call, AGAIN])
    assert json.dumps(arguments) in rendered and '"name": "f"' in rendered


@pytest.mark.parametrize("name", [name for name in BUILTINS if name not in ("base", *TAKE_TOOLS)])
def test_a_role_that_a_built_in_does_not_have_is_refused(name):
    with pytest.raises(TemplateError, match="the role tool does not exist"):
        builtin(name).render([USER, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize("source, reason", [
    ("{% for m in messages %}", "not valid Jinja, line 1"),
    ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
    ("{{ messages[0].missing.deeper }}", "refuses this conversation"),
    ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
    ("{{ messages.append(1) }}", "refuses this conversation"),
    ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "printed more than"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation"),
])
def test_a_bad_template_is_refused_in_one_line(source, reason):
    with pytest.raises(TemplateError, match=reason) as error:
        from_source(source).render([USER])
    assert "\n" not in str(error.value)


def test_dates_are_todays():
    assert from_source("{{ strftime_now('%Y') }}").render([USER]) == datetime.now().strftime("%Y")


def test_the_demo_models_session_has_the_ids_of_the_whole_conversation(tmp_path):
    prepare_tokenizer(DEMO, tmp_path, "internlm")
    template, tokenizer = ChatTemplate.load(tmp_path, "internlm"), Tokenizer(tmp_path)
    answer = {"role": "assistant", "content": "从前 there was a fox."}
    held = tokenizer.encode(template.render([SYSTEM, USER])) + tokenizer.encode(answer["content"])
    turn = tokenizer.encode(template.render_turn(AGAIN, is_first=False))
    assert held + turn == tokenizer.encode(template.render([SYSTEM, USER, answer, AGAIN]))
