from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import TokenizerError
from backend.tokenizer_files import BYTE_LETTERS, read_settings

SHORT = st.text(max_size=5)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | SHORT,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3))


def write(folder, **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return read_settings(folder)


def test_an_empty_folder_says_nothing(tmp_path):
    found = read_settings(tmp_path)
    assert (found.special_tokens, found.added_tokens, found.chat_templates, found.add_bos) == ({}, {}, {}, None)


def test_tokenizer_config_wins_over_the_special_tokens_map(tmp_path):
    found = write(tmp_path, tokenizer_config={"bos_token": {"content": "<a>"}, "eos_token": None},
                  special_tokens_map={"bos_token": "<b>", "eos_token": {"content": "<c>"}})
    assert found.special_tokens == {"bos_token": "<a>", "eos_token": "<c>"}


def test_added_tokens_come_from_both_forms(tmp_path):
    decoder = {"12": {"content": "<x>"}, "13": {"content": "<y>", "special": True}, "14": {"content": "<z>"}}
    config = {"pad_token": "<pad>", "additional_special_tokens": ["<x>"], "added_tokens_decoder": decoder}
    found = write(tmp_path, added_tokens={"<pad>": 10, "<tool>": 11}, tokenizer_config=config)
    assert found.added_tokens == {10: ("<pad>", True), 11: ("<tool>", False), 12: ("<x>", True), 13: ("<y>", True),
                                  14: ("<z>", False)}


@pytest.mark.parametrize("written", [
    "text", {"default": "text"}, [{"name": "default", "template": "text"}, {"name": "broken"}]])
def test_a_chat_template_is_a_text_or_named_texts(tmp_path, written):
    assert write(tmp_path, tokenizer_config={"chat_template": written}).chat_templates == {"default": "text"}


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe", b"3"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, data):
    (tmp_path / "special_tokens_map.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"special_tokens_map\.json .*fetch the checkpoint's file again"):
        read_settings(tmp_path)


def test_a_template_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8"):
        read_settings(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({}, optional={name: VALUES for name in (
    "bos_token", "eos_token", "additional_special_tokens", "added_tokens_decoder", "chat_template", "add_bos_token",
    "tokenizer_class")}), added=st.dictionaries(st.text(max_size=3), VALUES, max_size=2))
def test_whatever_the_files_hold_is_read_or_refused_in_one_line(tmp_path, values, added):
    try:
        found = write(tmp_path, tokenizer_config=values, added_tokens=added)
    except TokenizerError as error:
        assert "fetch" in str(error)
    else:
        assert all(isinstance(text, str) for text in (*found.special_tokens.values(), *found.chat_templates.values()))
        assert all(isinstance(token_id, int) and text for token_id, (text, _) in found.added_tokens.items())


def test_every_byte_has_its_letter():
    assert sorted(BYTE_LETTERS.values()) == list(range(256))
    assert (BYTE_LETTERS["Ġ"], BYTE_LETTERS["Ċ"], BYTE_LETTERS["a"]) == (0x20, 0x0A, 0x61)
