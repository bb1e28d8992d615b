from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.text.tools.call_parser import CallParser
from backend.text.tools.content_stop_words import ContentStopWords
from backend.text.tools.tool_format import ToolFormat
from tests.backend.text.tools.formats import ADD, FORMATS, HERMES, INTERNLM, LLAMA, write
from tests.backend.text.tools.test_call_parser import MARKERS, cut


def run(style: ToolFormat, words: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None, int | None]:
    stop_words = ContentStopWords(words, style)
    shown = "".join(map(stop_words.push, pieces)) + stop_words.flush()
    assert stop_words.num_shown == len(shown)
    return shown, stop_words.matched, stop_words.match_start


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_a_call_is_given_out_whole_whatever_stop_texts_it_has(style):
    text = write(style, "I will use add.", ADD)
    inside = ('"b"', "{", ",", "ool_call", "<", "}", "add>", "\n{", "action", "add.<")
    for pieces in ([text], list(text)):
        assert run(style, inside, pieces) == (text, None, None)
        assert run(style, ("use", '"b"'), pieces) == ("I will ", "use", 7)
        assert run(style, (".", '"b"'), pieces) == ("I will use add", ".", 14)


@pytest.mark.parametrize("style, text", [(INTERNLM, "a <|action_sta"), (HERMES, "a <tool"), (LLAMA, "a <func")])
def test_what_did_not_become_a_call_is_looked_through(style, text):
    for pieces in ([text], list(text)):
        assert run(style, ("<",), pieces) == ("a ", "<", 2)


@pytest.mark.parametrize("style, begun", [(INTERNLM, "a \n<|action_start|>"), (HERMES, "Hi \n<tool_call>"),
                                          (LLAMA, "\n\n{")])
def test_white_space_before_what_did_not_become_a_call_is_content(style, begun):
    text = begun + "hello END"
    for pieces in ([text], list(text)):
        assert run(style, ("END",), pieces) == (begun + "hello ", "END", len(begun) + 6)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@given(parts=st.lists(st.sampled_from(MARKERS), max_size=12),
       places=st.lists(st.integers(0, 400), max_size=8),
       words=st.lists(st.sampled_from(["text", "<", '"', " ", "{", "x<", "你", "}", "tool"]), max_size=3).map(tuple))
def test_any_text_is_cut_alike_however_it_arrives(style, parts, places, words):
    text = "".join(parts)
    whole = run(style, words, [text])
    assert whole == run(style, words, cut(text, places)) == run(style, words, list(text))
    assert whole[0] == (text if whole[1] is None else text[:whole[2]])


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
@given(content=st.text("ab c.", max_size=8), words=st.lists(st.text("ab c.", min_size=1, max_size=3), min_size=1,
                                                            max_size=2).map(tuple))
def test_content_before_a_call_has_no_stop_text(style, content, words):
    shown, matched, _ = run(style, words, list(write(style, content, ADD)))
    parser = CallParser(style)
    deltas = parser.push(shown), parser.flush(is_cut=False)
    content = "".join(delta.content for delta in deltas)
    assert not any(word in content for word in words)
    assert parser.num_calls == (matched is None)
