from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.text.stop_words import StopWords

LETTERS = st.text("ab", max_size=12)
WORDS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple)


def run(words, pieces):
    stop_words = StopWords(words)
    shown = [stop_words.push(piece) for piece in pieces]
    return stop_words, shown, stop_words.flush()


def search(words, text):
    """The earliest stop text in a whole text; the shorter of two that begin together."""
    found = [(text.find(word), len(word), word) for word in words if word in text]
    return (min(found)[0], min(found)[2]) if found else (None, None)


@given(words=WORDS, pieces=st.lists(LETTERS, max_size=6))
@example(words=("abab", "b"), pieces=["aba", "a"])
@example(words=("aab",), pieces=["aa", "ab"])
def test_any_cutting_gives_what_a_search_in_the_whole_text_gives(words, pieces):
    text = "".join(pieces)
    start, word = search(words, text)
    stop_words, shown, rest = run(words, pieces)
    assert (stop_words.match_start, stop_words.matched) == (start, word)
    assert "".join(shown) + rest == text[:start]


@given(words=WORDS, pieces=st.lists(LETTERS, max_size=6))
def test_only_what_could_become_a_stop_text_is_held_back(words, pieces):
    stop_words, text, shown = StopWords(words), "", ""
    for piece in pieces:
        text, shown = text + piece, shown + stop_words.push(piece)
        held = text[len(shown):]
        assert stop_words.matched or not held or any(word.startswith(held[:len(word)]) for word in words)


@given(words=WORDS, free=st.lists(LETTERS, max_size=3), pieces=st.lists(LETTERS, max_size=6))
def test_no_stop_text_ends_in_the_free_characters_however_the_text_is_cut(words, free, pieces):
    text, num_free = "".join(free + pieces), len("".join(free))
    ends = [(start, start + len(word), word) for word in words for start in range(len(text))
            if text.startswith(word, start) and start + len(word) > num_free]
    start, _, word = min(ends, default=(None, None, None))
    stop_words, shown = StopWords(words), ""
    for index, piece in enumerate(free + pieces):
        stop_words.num_free = min(num_free, len("".join((free + pieces)[:index + 1])))
        shown += stop_words.push(piece)
    shown += stop_words.flush()
    assert (shown, stop_words.matched, stop_words.match_start) == (text[:start], word, start)


def test_a_stop_text_is_met_across_pieces():
    stop_words = StopWords(("<|im_end|>",))
    assert [stop_words.push(piece) for piece in ("Hi <", "|im_", "end|> and more")] == ["Hi ", "", ""]
    assert (stop_words.matched, stop_words.match_start) == ("<|im_end|>", 3)
    assert stop_words.push("later") == stop_words.flush() == ""


def test_a_false_beginning_is_shown_when_it_turns_out_to_be_one():
    assert run(("<|im_end|>",), ["a <|im", " b", "<"])[1:] == (["a ", "<|im b", ""], "<")


def test_a_stop_text_complete_only_at_the_end_still_counts():
    stop_words, shown, rest = run(("abab", "b"), ["xab"])
    assert (shown, rest, stop_words.matched, stop_words.match_start) == (["x"], "a", "b", 2)


@pytest.mark.parametrize("piece", ["", "text"])
def test_without_stop_texts_everything_is_shown_at_once(piece):
    assert run((), [piece])[1:] == ([piece], "")
