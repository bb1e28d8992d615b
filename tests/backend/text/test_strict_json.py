from __future__ import annotations

import json

import pytest

from backend.text.strict_json import parse_json


@pytest.mark.parametrize("text", [
    "[", "[" * 100_000, '{"a":' * 100_000, '"\\ud800"', '{"\\uDC00": 1}', '"\\ud83d"', b'"\xed\xa0\x80"', '"\ud800"',
    b"\xff", '["\\ude00\\ud83d"]'])
def test_what_is_no_json_or_no_unicode_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", [json.dumps({"a": "😀"}), json.dumps({"a": "😀"}, ensure_ascii=False), '"\\\\ud800"'])
def test_pairs_of_surrogates_and_what_only_looks_like_one_are_text(text):
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
