from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.text.tools.call_parser import CallParser
from backend.text.tools.tool_format import ToolFormat
from tests.backend.text.tools.formats import ADD, ANSWERS, FORMATS, HERMES, INTERNLM, LLAMA, NOW, SAY, write


def read(style: ToolFormat, pieces: list[str], is_cut: bool = False) -> tuple[str, list[tuple[str, str]], bool]:
    """What all deltas add up to: content, calls, whether the answer ends in calls."""
    parser, content, calls, ids = CallParser(style), "", [], []
    for delta in (*map(parser.push, pieces), parser.flush(is_cut)):
        content += delta.content
        for call in delta.calls:
            assert (call.id is None) == (call.name is None)
            if call.name is not None:
                assert call.index == len(calls) and call.arguments == ""
                calls.append((call.name, ""))
                ids.append(call.id)
            name, arguments = calls[call.index]
            calls[call.index] = (name, arguments + call.arguments)
    assert len(set(ids)) == len(ids) == parser.num_calls
    return content, calls, parser.ends_in_calls


def cut(text: str, places: list[int]) -> list[str]:
    places = sorted({place % (len(text) + 1) for place in places})
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("style, text, content, calls", ANSWERS)
def test_an_answer_is_its_content_and_its_calls_however_it_is_cut(style, text, content, calls):
    expected = (content, list(calls), bool(calls))
    assert read(style, [text]) == read(style, list(text)) == expected
    for place in range(len(text)):  # every cut in two
        assert read(style, [text[:place], text[place:]]) == expected
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


MARKERS = ["<|action_start|><|plugin|>\n", "<|action_start|>", "<|action_end|>", "<tool_call>\n", "\n</tool_call>",
           "<function=", "add>", "</function>", "<|python_tag|>", "<think>", "</think>", "{", "}", '{"name": "add", ',
           '"arguments": ', '"parameters": ', '{"a": 1}', '"', "\\", " ", "\n", "text", "你"]


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@given(parts=st.lists(st.sampled_from(MARKERS), max_size=12), places=st.lists(st.integers(0, 400), max_size=8),
       is_cut=st.booleans())
def test_any_text_reads_the_same_however_it_is_cut(style, parts, places, is_cut):
    text = "".join(parts)
    assert read(style, [text], is_cut) == read(style, cut(text, places), is_cut) == read(style, list(text), is_cut)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@given(arguments=st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6), max_size=4), is_ascii=st.booleans())
def test_any_arguments_come_through_as_they_were_written(style, arguments, is_ascii):
    call = ("f", json.dumps(arguments, ensure_ascii=is_ascii))
    assert read(style, [write(style, "", call)]) == ("", [call], True)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_a_call_that_is_cut_off_gives_the_arguments_it_has_and_does_not_count_as_whole(style):
    text = write(style, "", SAY)
    end = text.index("brace")
    content, calls, ends_in_calls = read(style, [text[:end]])
    assert (content, calls, ends_in_calls) == ("", [("say", SAY[1][:SAY[1].index("brace")])], False)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@pytest.mark.parametrize("content", ["", "Let me see. "])
def test_no_markup_of_a_call_that_the_end_cut_off_is_content(style, content):
    text = write(style, content, ADD)
    for end in range(len(content), text.index(ADD[1])):
        shown, calls, _ = read(style, [text[:end]], is_cut=True)
        assert (shown.rstrip(), calls) == (content.rstrip(), [])
    if style is not LLAMA:  # whose answers have one call
        whole = write(style, content, ADD, SAY)
        for end in range(len(text), whole.index(SAY[1])):
            assert read(style, [whole[:end]], is_cut=True) == (content.rstrip(), [ADD], True)


@pytest.mark.parametrize("text", ["Hm<|action_start|>", "Hm <|action_start|><|plugin|>"])
def test_a_special_token_that_begins_a_call_is_no_content_even_where_a_stop_token_ended_the_answer(text):
    assert read(INTERNLM, [text]) == ("Hm", [], False)


@pytest.mark.parametrize("style, text", [
    (INTERNLM, "<|action_start|><|plugin|> begins a call."), (HERMES, '<tool_call>\n{"name" is what begins one'),
    (LLAMA, '{"name": 3}'), (LLAMA, '{"x": "y"}'), (LLAMA, "<function=>"), (HERMES, "a <tool")])
def test_what_begins_like_a_call_and_is_none_is_content(style, text):
    assert read(style, [text]) == (text, [], False)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@pytest.mark.parametrize("name", [r"\q", "a\nb", "\x00", r"\u12", r"\ud800"])
def test_a_call_whose_name_is_no_json_text_is_content(style, name):
    text = write(style, "", (name, "{}"))
    assert read(style, [text]) == read(style, list(text)) == (text, [], False)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_a_name_may_be_escaped_as_json_allows(style):
    assert read(style, [write(style, "", (r"\u0061\"d\/", "{}"))]) == ("", [('a"d/', "{}")], True)


@pytest.mark.parametrize("style, missing", [(INTERNLM, "<|action_end|>"), (HERMES, "\n</tool_call>"), (LLAMA, "}")])
def test_a_call_is_whole_with_its_arguments_even_if_its_end_was_a_stop_token(style, missing):
    assert read(style, [write(style, "", ADD).removesuffix(missing)]) == ("", [ADD], True)


def test_arguments_are_given_out_as_they_come():
    parser = CallParser(INTERNLM)
    pieces = ["Hm", "m ", '<|action_start|><|plugin|>\n{"name": "add", "par', 'ameters": ', '{"a"', ": 3", "}", "}",
              "<|action_end|>"]
    given_out = [(delta.content, [call.name or call.arguments for call in delta.calls])
                 for delta in map(parser.push, pieces)]
    assert given_out == [("Hm", []), ("m", []), ("", []), ("", []), ("", ["add", '{"a"']), ("", [": 3"]), ("", ["}"]),
                         ("", []), ("", [])]


def test_ids_of_calls_are_unique_between_answers():
    ids = {CallParser(INTERNLM).push(write(INTERNLM, "", NOW)).calls[0].id for _ in range(100)}
    assert len(ids) == 100 and all(call_id.startswith("call_") for call_id in ids)
