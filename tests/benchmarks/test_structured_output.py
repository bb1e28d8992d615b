from __future__ import annotations

import pytest

from backend.text.tokenizer import Tokenizer
from benchmarks.stand_in_tokenizer import write_tokenizer
from benchmarks.structured_output import masks


@pytest.mark.parametrize("vocab_size", [1000, 92544, 128256])
def test_a_stand_in_tokenizer_has_as_many_tokens_as_asked_and_reads_back_its_texts(tmp_path, vocab_size):
    tokenizer = Tokenizer(write_tokenizer(tmp_path, vocab_size))
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.eos_token_id == 2
    assert tokenizer.decode(tokenizer.encode('{"a b": [12, "é"]}')) == '{"a b": [12, "é"]}'


def test_rows_follow_the_grammar_for_as_long_as_masks_are_timed(tmp_path):
    assert masks(write_tokenizer(tmp_path, 1000), 1000, 2) > 0
