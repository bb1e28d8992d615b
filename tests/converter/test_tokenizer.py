from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from backend.errors import TemplateError, TokenizerError
from backend.tokenizer_files import read_settings
from converter.sentencepiece_model import PieceType, parse_sentencepiece
from converter.tokenizer import build_from_sentencepiece, check_against_sentencepiece, prepare_tokenizer
from tests.tiny_tokenizers import (
    CHAT_TOKENS,
    LINES,
    byte_ranks,
    sentencepiece_model,
    write_byte_level_folder,
    write_rank_folder,
    write_sentencepiece_folder,
    write_vocab_folder,
)

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


def test_bos_is_added_by_encoding_with_special_tokens_unless_the_source_says_no(tmp_path):
    for name, config, expected in (("default", {}, [1]), ("off", {"add_bos_token": False}, []),
                                   ("eos", {"add_eos_token": True}, [1, 2])):
        source = write_sentencepiece_folder(tmp_path / name, sentencepiece_model(), **config)
        prepare_tokenizer(source, tmp_path / f"{name}-target", None)
        tokenizer = Tokenizer.from_file(str(tmp_path / f"{name}-target/tokenizer.json"))
        assert [i for i in tokenizer.encode("fox").ids if i in (1, 2)] == expected


def test_special_tokens_that_only_the_model_names_are_written_down(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    info = prepare_tokenizer(tmp_path, tmp_path / "target", None)
    assert (info.bos_token_id, info.eos_token_id) == (1, 2)
    assert read_settings(tmp_path / "target").special_tokens["eos_token"] == "</s>"


def test_preparing_twice_gives_the_same_files(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model(), chat_template="{{ messages }}")
    prepare_tokenizer(source, tmp_path / "once", None)
    prepare_tokenizer(tmp_path / "once", tmp_path / "twice", None)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert read_settings(tmp_path / "twice").chat_templates == {"default": "{{ messages }}"}


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


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"version https://git-lfs", sentencepiece_model()[:5000],
                                  sentencepiece_model()[:-1]])
def test_a_damaged_model_file_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"fetch it again|fetch the file again|differs") as error:
        prepare_tokenizer(tmp_path, tmp_path / "target", None)
    assert "\n" not in str(error.value)


def test_pieces_and_settings_are_read_as_sentencepiece_reads_them():
    data = sentencepiece_model(False, True, ("<eoh>",), control_symbols="<ctl>")
    model, reference = parse_sentencepiece(data, "tokenizer.model"), SentencePieceProcessor(model_proto=data)
    assert [piece.text for piece in model.pieces] == [reference.id_to_piece(i) for i in range(len(model.pieces))]
    assert [piece.score for piece in model.pieces] == [reference.get_score(i) for i in range(len(model.pieces))]
    assert all((piece.type is PieceType.BYTE) == reference.is_byte(i) for i, piece in enumerate(model.pieces))
    assert all((piece.type is PieceType.CONTROL) == reference.is_control(i) for i, piece in enumerate(model.pieces))
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces, model.byte_fallback) == (False, True, True)
    assert (model.unk_id, model.bos_id, model.eos_id) == (reference.unk_id(), reference.bos_id(), reference.eos_id())


def test_two_ids_of_one_text_are_refused(tmp_path):
    source = write_sentencepiece_folder(tmp_path, sentencepiece_model())
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["400"] = {"content": "<|im_end|>", "special": True}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"give '<\|im_end\|>' two ids"):
        prepare_tokenizer(source, tmp_path / "target", None)


def test_tokenizer_json_is_taken_as_published(tmp_path):
    source = write_byte_level_folder(tmp_path / "source")
    info = prepare_tokenizer(source, tmp_path / "target", None)
    assert (tmp_path / "target/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert info.bos_token_id is None
    assert info.eos_token_id == 1


def test_a_damaged_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        prepare_tokenizer(tmp_path, tmp_path / "target", None)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        prepare_tokenizer(tmp_path, tmp_path / "target", None)


def test_a_special_token_that_the_vocabulary_lacks_is_refused(tmp_path):
    source = write_byte_level_folder(tmp_path / "source", bos_token="<bos>")
    with pytest.raises(TokenizerError, match="names '<bos>', which the vocabulary does not have"):
        prepare_tokenizer(source, tmp_path / "target", None)


def test_an_unknown_model_name_is_refused_only_where_the_source_brings_no_template(tmp_path):
    source = write_byte_level_folder(tmp_path / "source")
    with pytest.raises(TemplateError, match=r"did you mean 'internlm2'\? known are .*vicuna"):
        prepare_tokenizer(source, tmp_path / "target", "internml2")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    prepare_tokenizer(source, tmp_path / "target", "internml2")
    assert read_settings(tmp_path / "target").chat_templates == {"default": "{{ messages }}"}


def test_no_python_of_a_checkpoint_is_copied(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model())
    (source / "tokenization_internlm2.py").write_text("raise SystemExit")
    prepare_tokenizer(source, tmp_path / "target", None)
    assert sorted(file.name for file in (tmp_path / "target").iterdir()) == [
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


@pytest.mark.parametrize("text", [*LINES[:7], "isn't I'M 12345 a\r\n\n b  c", "e\u0301 é ﬁ", "<|im_start|>user\nhi"])
def test_vocab_and_merges_cut_text_as_qwens_tokenizer_does(tmp_path, text):
    source = write_vocab_folder(tmp_path / "source", "Qwen2Tokenizer")
    prepare_tokenizer(source, tmp_path / "target", None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    reference = Qwen2Tokenizer.from_pretrained(source)
    assert tokenizer.encode(text).ids == reference.encode(text)


def test_vocab_and_merges_of_an_unknown_class_are_refused(tmp_path):
    source = write_vocab_folder(tmp_path / "source", "StrangeTokenizer")
    with pytest.raises(TokenizerError, match="'StrangeTokenizer' is not supported"):
        prepare_tokenizer(source, tmp_path / "target", None)


def merge_by_rank(word: bytes) -> list[int]:
    """tiktoken's rule, literally: join the neighbours whose result has the lowest rank."""
    ranks, parts = byte_ranks(), [bytes([byte]) for byte in word]
    while word not in ranks and len(parts) > 1:
        rank, at = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
        if rank == 1 << 30:
            break
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[word]] if word in ranks else [ranks[part] for part in parts]


@pytest.mark.parametrize("text", [*LINES[:7], "isn't I'M 12345 a\r\n\n b  c", "  ", ""])
def test_a_rank_file_cuts_text_by_rank(tmp_path, text):
    prepare_tokenizer(write_rank_folder(tmp_path / "source"), tmp_path / "target", None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    words = regex.findall(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                          r"|\s*[\r\n]+|\s+(?!\S)|\s+", text)
    assert tokenizer.encode(text, add_special_tokens=False).ids == [
        token_id for word in words for token_id in merge_by_rank(word.encode())]


def test_a_rank_file_gets_llama_3s_special_tokens_after_its_ranks(tmp_path):
    info = prepare_tokenizer(write_rank_folder(tmp_path / "source"), tmp_path / "target", "llama3")
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    first = len(byte_ranks())
    assert info.vocab_size == first + 256
    names = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 2: "<|reserved_special_token_0|>",
             9: "<|eot_id|>", 255: "<|reserved_special_token_247|>"}  # offsets in Meta's tokenizer of Llama 3.1
    assert {offset: tokenizer.id_to_token(first + offset) for offset in names} == names
    assert tokenizer.encode("<|eot_id|>").ids == [first, first + 9]


def test_a_damaged_rank_file_is_refused(tmp_path):
    source = write_rank_folder(tmp_path / "source")
    lines = (source / "tokenizer.model").read_bytes().splitlines(keepends=True)
    (source / "tokenizer.model").write_bytes(b"".join(lines[:10] + lines[11:]))
    with pytest.raises(TokenizerError, match="does not number its"):
        prepare_tokenizer(source, tmp_path / "target", None)


def test_the_prepared_folder_needs_only_tokenizer_json(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model())
    prepare_tokenizer(source, tmp_path / "target", None)
    shutil.rmtree(source)
    (tmp_path / "target/tokenizer.model").unlink()
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    assert all(tokenizer.token_to_id(text) is not None for text in CHAT_TOKENS)
