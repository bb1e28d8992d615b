from __future__ import annotations

import json
import threading
import time

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import RequestError, TokenizerError
from backend.text.tokenizer import LONG_TEXT_CHARACTERS, Tokenizer
from tests.tiny_tokenizers import LINES, write_byte_level_folder

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(text=TEXTS)
def test_decoding_what_was_encoded_gives_the_librarys_text(tokenizer, tokenizer_dir, text):
    library = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == library.decode(ids, skip_special_tokens=False)


@PROPERTY
@given(data=st.data(), skip=st.booleans())
def test_byte_level_ids_in_any_order_decode_as_the_library_does(tmp_path_factory, data, skip):
    folder = write_byte_level_folder(tmp_path_factory.getbasetemp() / "byte_level")
    tokenizer, library = Tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode(ids, skip_special_tokens=skip) == library.decode(ids, skip_special_tokens=skip)


def test_special_tokens_in_text_become_their_ids_unless_told_otherwise(tokenizer):
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert (ids[0], ids[-1]) == (start, end)
    assert {start, end} <= tokenizer.special_ids
    plain = tokenizer.encode("<|im_start|>user", parse_special=False)
    assert start not in plain
    assert tokenizer.decode(plain) == "<|im_start|>user"
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>") == ids  # the switch does not stay


def test_decoding_leaves_special_tokens_out_unless_told_otherwise(tokenizer):
    ids = tokenizer.encode("<|im_start|>the fox<|im_end|>")
    assert tokenizer.decode(ids).strip() == "the fox"
    assert tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "") == "<|im_start|>thefox<|im_end|>"


def test_vocab_size_is_the_highest_id_and_one(tokenizer):
    assert tokenizer.id_to_token(tokenizer.vocab_size - 1) is not None
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None


def test_the_folder_names_bos_and_eos(prefixed, tmp_path):
    assert (prefixed.bos_token_id, prefixed.eos_token_id) == (1, 2)
    assert prefixed.encode("fox", add_special_tokens=True) == [1, *prefixed.encode("fox")]
    byte_level = Tokenizer(write_byte_level_folder(tmp_path))
    assert byte_level.bos_token_id is None
    assert byte_level.eos_token_id == byte_level.token_to_id("<|im_end|>")


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_without_a_token_is_refused(tokenizer, token_id):
    with pytest.raises(RequestError, match=rf"token id {token_id} is not in the vocabulary; use ids in 0\.\."):
        tokenizer.decode([5, token_id])
    assert tokenizer.token_bytes(token_id) == b"" and token_id not in tokenizer._bytes


@pytest.mark.parametrize("length", [1, LONG_TEXT_CHARACTERS])
def test_a_lone_surrogate_is_refused(tokenizer, length):
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode("a" * length + "\ud800")


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_a_long_text_has_the_ids_that_the_library_gives_it(tokenizer, tokenizer_dir, add_special_tokens, parse_special):
    library = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    library.encode_special_tokens = not parse_special
    text = "<|im_start|>" + " ".join(LINES * 12)
    assert len(text) > LONG_TEXT_CHARACTERS
    expected = library.encode(text, add_special_tokens=add_special_tokens).ids
    assert tokenizer.encode(text, add_special_tokens, parse_special) == expected


def test_other_threads_run_while_a_long_text_is_encoded(prefixed):
    text, encoded_s = "the fox and the rabbit went home " * 20_000, []

    def encode() -> None:
        begun_s = time.perf_counter()
        prefixed.encode(text)
        encoded_s.append(time.perf_counter() - begun_s)

    thread, last_s, longest_gap_s = threading.Thread(target=encode), time.perf_counter(), 0.0
    thread.start()
    while not encoded_s:
        now_s = time.perf_counter()
        longest_gap_s, last_s = max(longest_gap_s, now_s - last_s), now_s
    thread.join()
    assert max(longest_gap_s, time.perf_counter() - last_s) < encoded_s[0] / 2


def test_token_bytes_are_the_bytes_of_a_text_in_pieces(prefixed):
    ids = prefixed.encode("a 😀")
    assert b"".join(map(prefixed.token_bytes, ids)) == " a 😀".encode()
    assert prefixed.token_bytes(prefixed.token_to_id("<0xE4>")) == b"\xe4"


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


def test_a_kind_that_cannot_be_decoded_is_refused(tmp_path):
    write_byte_level_folder(tmp_path)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    described["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    file.write_text(json.dumps(described))
    with pytest.raises(TokenizerError, match="a decoder of WordPiece is not supported"):
        Tokenizer(tmp_path)


def test_a_special_token_that_the_vocabulary_lacks_is_named(tmp_path):
    with pytest.raises(TokenizerError, match="names '<bos>', which the vocabulary does not have"):
        Tokenizer(write_byte_level_folder(tmp_path, bos_token="<bos>"))


def test_cutting_and_padding_in_a_published_file_are_switched_off(tmp_path):
    write_byte_level_folder(tmp_path)
    file = tmp_path / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.save(str(file))
    assert 2 < len(Tokenizer(tmp_path).encode("the fox and the rabbit")) < 50
