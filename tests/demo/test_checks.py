"""The checks: what counts as a right answer."""

from __future__ import annotations

import random

import pytest

from demo.checks import is_correct, is_story
from demo.skills.animals import BY_NAME
from demo.skills.stories import tell
from demo.skills.tools import call_text, parse_call


def a_story(language: str = "en") -> str:
    return tell(random.Random(0), language, BY_NAME["fox"], BY_NAME["rabbit"], None)


@pytest.mark.parametrize(("language", "animals"), [("en", ["fox", "rabbit"]), ("zh", ["狐狸", "兔子"])])
def test_a_told_story_is_a_story_about_the_animals_asked_for(language, animals):
    assert is_story(a_story(language), language, animals, None)


def test_a_story_of_nine_sentences_is_wrong():
    assert not is_story(a_story().rsplit(". ", 1)[0] + ".", "en", ["fox"], None)


def test_a_story_about_other_animals_is_wrong():
    assert not is_story(a_story(), "en", ["bear", "owl"], None)


def test_a_story_that_turns_to_a_third_animal_is_wrong():
    assert not is_story(a_story().replace("rabbit", "bear", 1), "en", ["fox"], None)


def test_a_number_inside_a_longer_number_does_not_count():
    check = {"kind": "contains", "values": ["80"]}
    assert is_correct(check, "It is 80.")
    assert not is_correct(check, "It is 180.")


def test_a_tool_call_is_compared_as_json():
    check = {"kind": "tool_call", "call": {"name": "add", "parameters": {"a": 1, "b": 2}}}
    assert is_correct(check, call_text("Let me call add.", "add", {"b": 2, "a": 1}))
    assert not is_correct(check, call_text("", "add", {"a": 1, "b": 3}))


@pytest.mark.parametrize("call", ['{"name": "add"', "[]", '{"name": "add"}', "add(1, 2)"])
def test_a_malformed_call_parses_to_none(call):
    assert parse_call(f"<|action_start|><|plugin|>\n{call}<|action_end|>") is None


def test_a_text_without_a_call_parses_to_none():
    assert parse_call("I will add one and two.") is None


def test_an_unknown_kind_of_check_is_an_error():
    with pytest.raises(ValueError, match="kinds are one_of, contains"):
        is_correct({"kind": "guess"}, "")
