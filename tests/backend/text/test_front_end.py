"""What an answer shows, what of it a session keeps when a stop text ends it, and how one with tools is sampled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import RequestError
from backend.model_source import open_model
from backend.requests import FinishReason, GenerateOutput, SamplingParams
from backend.text.chat_template import ChatTemplate
from backend.text.chat_template_option import read_chat_template
from backend.text.front_end import Answer, TextFrontEnd
from backend.text.stop_words import StopWords
from backend.text.tools.tool_plan import plan_tools
from tests.backend.text.conftest import DEMO
from tests.tiny_tokenizers import write_byte_level_folder

PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.lists(st.sampled_from(["the", " fox", " ", "\n", "从", "😀", "👧", "é", "  "]), max_size=8).map("".join)


@PROPERTY
@given(before=PIECES, stop=st.sampled_from(["😀", "👧é", "从前", "é", "fox\n"]), after=PIECES)
def test_kept_tokens_are_shown_text_and_no_part_of_a_character(tokenizer, before, stop, after):
    ids = tokenizer.encode(before + stop + after)
    answer = Answer(tokenizer, SamplingParams(), (), StopWords((stop,)))
    shown = ""
    for position, token_id in enumerate(ids):
        is_last = position == len(ids) - 1
        output = answer.push(GenerateOutput("a", (token_id,), FinishReason.LENGTH if is_last else None))
        shown += output.text
        if output.finish_reason is FinishReason.STOP:
            break
    assert output.finish_reason is FinishReason.STOP
    assert shown == tokenizer.decode(ids).partition(stop)[0]
    assert shown.startswith(tokenizer.decode(ids[:answer.num_kept_tokens]))


def test_tokens_of_a_stop_text_are_not_kept_where_an_end_id_comes_with_them(tokenizer):
    before, ids = tokenizer.encode("The fox"), tokenizer.encode("The fox ran away")
    end_id = tokenizer.eos_token_id
    answer = Answer(tokenizer, SamplingParams(), (), StopWords((" ran away",)))
    output = answer.push(GenerateOutput("a", (*ids, end_id), FinishReason.STOP, num_completion_tokens=len(ids) + 1))
    assert answer.is_cut and output.text == "The fox"
    assert output.num_kept_tokens == answer.num_kept_tokens == len(before)


@pytest.mark.parametrize("num_at_once", [1, 2, 9])
def test_a_stop_text_has_to_end_behind_the_least_number_of_tokens(tokenizer, num_at_once):
    ids = tokenizer.encode("the fox the fox the fox the fox")
    text = tokenizer.decode(ids)
    for min_new_tokens in range(len(ids)):
        num_free = len(tokenizer.decode(ids[:min_new_tokens]))
        start = next(start for start in range(len(text)) if text.startswith("fox", start) and start + 3 > num_free)
        answer = Answer(tokenizer, SamplingParams(min_new_tokens=min_new_tokens), (), StopWords(("fox",)))
        shown = ""
        for begin in range(0, len(ids), num_at_once):
            output = answer.push(GenerateOutput("a", tuple(ids[begin:begin + num_at_once])))
            shown += output.text
            if output.finish_reason is not None:
                break
        assert (shown, output.finish_reason) == (text[:start], FinishReason.STOP)


PLAN = plan_tools([{"type": "function", "function": {"name": "now"}}])


def test_an_answer_with_tools_follows_a_grammar_and_does_not_end_with_a_call():
    source = open_model(DEMO, "internlm2")
    front_end = TextFrontEnd(source, read_chat_template("internlm2", source.tokenizer_dir))
    chat, tools = front_end.chat_sampling(SamplingParams()), front_end.tool_sampling(SamplingParams(), PLAN)
    call_end, turn_end = map(front_end.tokenizer.token_to_id, ("<|action_end|>", "<|im_end|>"))
    assert (chat.grammar, chat.skip_special_tokens) == (None, True) and {call_end, turn_end} <= set(chat.stop_ids)
    assert '"now' in tools.grammar.replace("\\", "") and not tools.skip_special_tokens
    assert turn_end in tools.stop_ids and call_end not in tools.stop_ids
    assert call_end in front_end.tool_sampling(SamplingParams(stop_ids=(call_end,)), PLAN).stop_ids


def test_a_stop_id_that_a_call_may_need_is_refused():
    front_end = TextFrontEnd(open_model(DEMO, "internlm2"))
    with pytest.raises(RequestError, match=r"stop_ids beside tools .* \[2070\] are not: .* use stop") as refused:
        front_end.tool_sampling(SamplingParams(stop_ids=(2070,)), PLAN)
    assert refused.value.field == "stop_ids"


def test_tools_are_refused_where_nobody_could_read_the_calls(tmp_path):
    folder = write_byte_level_folder(tmp_path)
    template = ChatTemplate("the test's template", {"default": "{{ tools | tojson }}[TOOL_CALLS]"}, {})
    front_end = TextFrontEnd(SimpleNamespace(model=None, tokenizer_dir=folder), template)
    with pytest.raises(RequestError, match="how this model writes calls is not known here; leave tools out"):
        front_end.tool_sampling(SamplingParams(), PLAN)
