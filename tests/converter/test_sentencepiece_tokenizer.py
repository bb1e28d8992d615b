from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from backend.errors import TokenizerError
from backend.tokenizer_files import read_settings
from converter.sentencepiece_model import parse_sentencepiece
from converter.sentencepiece_tokenizer import build_from_sentencepiece, check_against_sentencepiece
from converter.tokenizer import prepare_tokenizer
from tests.tiny_tokenizers import sentencepiece_model, write_sentencepiece_folder

BOTH = (True, False)
EMPTY = Path("/no tokenizer files here")
PARTS = ["the", " fox", " ", "  ", "\n", "从前", "一只狐狸", "😀", "\x00", "▁", "é", "<eoh>", "1", "\t"]
TEXTS = (st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
         | st.lists(st.sampled_from(PARTS)).map("".join))


@functools.cache
def built(add_dummy_prefix: bool, remove_extra_whitespaces: bool, user_defined: tuple[str, ...] = ()):
    data = sentencepiece_model(add_dummy_prefix, remove_extra_whitespaces, user_defined)
    model = parse_sentencepiece(data, "tokenizer.model")
    tokenizer, _ = build_from_sentencepiece(model, read_settings(EMPTY), "tokenizer.model")
    return tokenizer, SentencePieceProcessor(model_proto=data)


@pytest.mark.parametrize("user_defined", [(), ("<eoh>", "<eoa>")])
@pytest.mark.parametrize("remove_extra_whitespaces", BOTH)
@pytest.mark.parametrize("add_dummy_prefix", BOTH)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="  the fox  ")
@example(text="a<eoh>\n<eoa> b")
def test_built_tokenizer_cuts_text_as_sentencepiece(add_dummy_prefix, remove_extra_whitespaces, user_defined, text):
    tokenizer, reference = built(add_dummy_prefix, remove_extra_whitespaces, user_defined)
    if text.strip(" ▁") in user_defined:
        return  # read as the piece alone, on purpose
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)


def test_a_piece_of_a_null_character_is_never_taken_as_in_sentencepiece(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model())
    prepare_tokenizer(source, tmp_path / "target", None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    reference = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    ids = tokenizer.encode("a\x00b", add_special_tokens=False).ids
    assert ids == reference.encode("a\x00b")
    assert tokenizer.id_to_token(ids[1]) == "<0x00>"


@pytest.mark.parametrize("add_dummy_prefix", BOTH)
def test_renamed_ids_become_special_tokens_that_cut_the_text(tmp_path, add_dummy_prefix):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model(add_dummy_prefix))
    info = prepare_tokenizer(source, tmp_path / "target", None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    reference = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    start, end = info.vocab_size - 2, info.vocab_size - 1
    ids = tokenizer.encode("<|im_start|>the fox<|im_end|>\n", add_special_tokens=False).ids
    assert ids == [start, *reference.encode("the fox"), end, *reference.encode("\n")]
    assert tokenizer.token_to_id("[UNUSED_TOKEN_0]") is None
    assert (info.vocab_size, info.bos_token_id, info.eos_token_id) == (reference.vocab_size(), 1, 2)


def test_an_additional_special_token_cuts_the_text_though_the_model_calls_it_user_defined(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model(user_defined=("<eoh>",)),
                                        additional_special_tokens=["<eoh>"])
    prepare_tokenizer(source, tmp_path / "target", None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    assert tokenizer.encode("fox<eoh>fox", add_special_tokens=False).tokens == ["▁fox", "<eoh>", "▁fox"]


def test_bos_is_added_by_encoding_with_special_tokens_unless_the_source_says_no(tmp_path):
    for name, config, expected in (("default", {}, [1]), ("off", {"add_bos_token": False}, []),
                                   ("eos", {"add_eos_token": True}, [1, 2])):
        source = write_sentencepiece_folder(tmp_path / name, sentencepiece_model(), **config)
        prepare_tokenizer(source, tmp_path / f"{name}-target", None)
        tokenizer = Tokenizer.from_file(str(tmp_path / f"{name}-target/tokenizer.json"))
        assert [i for i in tokenizer.encode("fox").ids if i in (1, 2)] == expected


def test_a_tokenizer_that_differs_from_sentencepiece_is_refused_with_the_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(True))
    model = parse_sentencepiece((tmp_path / "tokenizer.model").read_bytes(), "tokenizer.model")
    wrong, _ = build_from_sentencepiece(dataclasses.replace(model, add_dummy_prefix=False), read_settings(EMPTY), "")
    with pytest.raises(TokenizerError, match=r"differs from SentencePiece on ' '"):
        check_against_sentencepiece(wrong, model, tmp_path / "tokenizer.model")


@pytest.mark.parametrize("options, reason", [
    ({"normalization_rule_name": "nmt_nfkc"}, "normalises text with a table"),
    ({"model_type": "unigram", "vocab_size": 330}, "no SentencePiece BPE"),
    ({"treat_whitespace_as_suffix": True}, "no SentencePiece BPE"),
])
def test_a_model_that_cannot_be_said_exactly_is_refused(tmp_path, options, reason):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(**options))
    with pytest.raises(TokenizerError, match=reason):
        prepare_tokenizer(tmp_path, tmp_path / "target", None)
    assert not (tmp_path / "target").exists()


def test_two_ids_of_one_text_are_refused(tmp_path):
    source = write_sentencepiece_folder(tmp_path, sentencepiece_model())
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["400"] = {"content": "<|im_end|>", "special": True}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"give '<\|im_end\|>' two ids"):
        prepare_tokenizer(source, tmp_path / "target", None)
