from __future__ import annotations

import json

import pytest

from backend.chat_templates import builtin_template
from backend.errors import TemplateError
from backend.text.chat_template import ChatTemplate
from tests.tiny_tokenizers import write_byte_level_folder

USER = {"role": "user", "content": "p"}
CHATML = ("{{ bos_token }}{% for message in messages %}"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def calls(*ids: str) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in ids]}


def result(call_id: str | None, role: str = "tool") -> dict:
    return {"role": role, "content": f"of {call_id}"} | ({} if call_id is None else {"tool_call_id": call_id})


def render(messages: list[dict], name: str = "internlm2", tools: list[dict] | None = None) -> str:
    template = builtin_template(name)
    return ChatTemplate(name, {"default": template.source}, {"bos_token": "<s>"}, template.stop).render(messages, tools)


def test_results_of_parallel_calls_are_shown_in_the_order_of_the_calls():
    swapped = render([USER, calls("a", "b"), result("b"), result("a"), USER, calls("c"), result("c")])
    assert swapped == render([USER, calls("a", "b"), result("a"), result("b"), USER, calls("c"), result("c")])
    assert swapped.index("of a") < swapped.index("of b") < swapped.index("of c")
    assert swapped.count("<|action_start|><|plugin|>\n") == 3


def test_results_without_ids_stay_where_they_are():
    text = render([USER, calls("a", "b"), {"role": "environment", "content": "1", "name": "plugin"},
                   {"role": "environment", "content": "2", "name": "plugin"}])
    assert text.index("plugin|>\n1<|im_end|>") < text.index("plugin|>\n2<|im_end|>")


def test_a_result_of_a_call_that_was_not_made_is_refused():
    with pytest.raises(TemplateError, match=r"messages\[2\].tool_call_id is 'x', which no call"):
        render([USER, calls("a"), result("x")])


@pytest.mark.parametrize("role", ["tool", "environment", "ipython"])
@pytest.mark.parametrize("name, shown", [("internlm2", "<|im_start|>environment name=<|plugin|>\nof a<|im_end|>"),
                                         ("llama3.1", "ipython<|end_header_id|>\n\nof a<|eot_id|>"),
                                         ("qwen2.5", "<|im_start|>user\n<tool_response>\nof a\n</tool_response>")])
def test_a_result_is_shown_as_the_model_knows_it_whatever_its_role_is_called(name, shown, role):
    if (name, role) == ("internlm2", "environment"):
        shown = "<|im_start|>environment\nof a<|im_end|>"  # the tool's kind is the message's name, as in LMDeploy
    assert shown in render([USER, calls("a"), result("a", role)], name)


def test_a_developer_is_the_system_of_a_template_without_one():
    assert render([{"role": "developer", "content": "x"}, USER]) == render([{"role": "system", "content": "x"}, USER])


def test_arguments_that_are_no_object_are_refused():
    call = calls("a")
    call["tool_calls"][0]["function"]["arguments"] = "[1]"
    with pytest.raises(TemplateError, match="arguments of a are no JSON object"):
        render([USER, call])


def test_llama31_refuses_several_calls_in_one_message():
    with pytest.raises(TemplateError, match="one function at a time"):
        render([USER, calls("a", "b")], "llama3.1")


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_qwen_writes_tools_calls_and_results_as_it_was_trained(name):
    text = render([{"role": "system", "content": "sys"}, USER, calls("a", "b"), result("a"), result("b")], name, [TOOL])
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    assert ('<|im_start|>assistant\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>\n'
            '{"name": "b", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nof a\n'
            "</tool_response>\n<tool_response>\nof b\n</tool_response><|im_end|>\n<|im_start|>assistant\n") in text


def test_internlms_published_template_is_completed_where_tools_occur(tmp_path):
    tokens = ["<|action_start|>", "<|action_end|>", "<|plugin|>"]
    folder = write_byte_level_folder(tmp_path, chat_template=CHATML, additional_special_tokens=tokens)
    own, builtin = ChatTemplate.load(folder, "internlm2"), builtin_template("internlm2").source
    builtin = ChatTemplate("built-in", {"default": builtin}, {"bos_token": own.render([USER]).partition("<|im")[0]})
    assert own.takes_tools
    for messages, tools in (([USER], [TOOL]), ([USER, calls("a"), result("a")], None)):
        assert own.render(messages, tools) == builtin.render(messages, tools)


def test_a_template_without_tools_in_a_vocabulary_without_their_tokens_takes_none(tmp_path):
    own = ChatTemplate.load(write_byte_level_folder(tmp_path, chat_template=CHATML))
    assert not own.takes_tools
