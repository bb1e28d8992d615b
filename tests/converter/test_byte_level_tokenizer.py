from __future__ import annotations

import pytest
import regex
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from backend.errors import TokenizerError
from converter.tokenizer import prepare_tokenizer
from tests.tiny_tokenizers import LINES, byte_ranks, write_rank_folder, write_vocab_folder


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
