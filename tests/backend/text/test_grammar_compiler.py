"""Grammars over every kind of tokenizer: what can be generated is what the grammar says, as the client sees it."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest

from backend.errors import RequestError
from backend.text.grammar import choice_grammar, json_schema_grammar, regex_grammar
from backend.text.grammar_compiler import GrammarCompiler
from backend.text.tokenizer import Tokenizer

NUM_PADDING = 7  # rows of the logits without a token
SCHEMA = {"type": "object",
          "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"},
                         "tags": {"type": "array", "items": {"enum": ["狐狸", "a b"]}, "maxItems": 2}},
          "required": ["name", "n", "tags"], "additionalProperties": False}


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + NUM_PADDING)


def allowed_ids(matcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")).tolist()


def generated(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: str, seed: int) -> bytes | None:
    """The bytes of a random answer; None where it did not end in time."""
    matcher, chance, data = compiler.compile(grammar), random.Random(seed), b""
    for _ in range(200):
        allowed = allowed_ids(matcher)
        if compiler.end_id in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            return data
        token_id = chance.choice([token_id for token_id in allowed if token_id != compiler.end_id])
        assert token_id < tokenizer.vocab_size and token_id not in tokenizer.special_ids
        assert matcher.consume_token(token_id)
        data += tokenizer.token_bytes(token_id)
        if matcher.is_stopped():
            return data
    return None


@pytest.mark.parametrize("grammar", [
    json_schema_grammar(SCHEMA), regex_grammar("[a-z]{2,4}é(狐|/)+"),
    choice_grammar(["yes it is", "no", '狐狸 \n"x"']),
], ids=["json", "regex", "choice"])
def test_random_answers_follow_the_grammar(compiler, tokenizer, grammar):
    answers = [generated(compiler, tokenizer, grammar, seed) for seed in range(30)]
    texts = [answer.decode() for answer in answers if answer is not None]
    assert len(texts) > 15
    for text in texts:
        if "json" in grammar:
            found = json.loads(text)
            assert list(found) == ["name", "n", "tags"] and len(found["name"]) <= 8 and type(found["n"]) is int
            assert set(found["tags"]) <= {"狐狸", "a b"} and len(found["tags"]) <= 2
        elif "yes" in grammar:
            assert text in ("yes it is", "no", '狐狸 \n"x"')
        else:
            assert re.fullmatch("[a-z]{2,4}é(狐|/)+", text)


def test_a_forced_text_may_be_written_as_the_model_writes_it(compiler, tokenizer):
    matcher = compiler.compile(choice_grammar(["the fox and the rabbit"]))
    data = b""
    while not matcher.is_stopped():
        token_id = allowed_ids(matcher)[-1]
        assert matcher.consume_token(token_id)
        data += tokenizer.token_bytes(token_id)
    assert data == b"the fox and the rabbit"


def test_a_special_token_comes_where_a_rule_names_it_and_nowhere_else(compiler, tokenizer):
    end = tokenizer.token_to_id("<|im_end|>")
    matcher = compiler.compile('start: "a" <|im_end|> "b"')
    letter = allowed_ids(matcher)[-1]
    assert tokenizer.token_bytes(letter) == b"a" and matcher.consume_token(letter)
    assert allowed_ids(matcher) == [end]
    text = compiler.compile('start: "<|im_end|>"')
    assert end not in allowed_ids(text) and allowed_ids(text)


@pytest.mark.parametrize(("grammar", "words"), [
    ("start: a", 'unknown name: "a"'), ('start: %json {"type": "x"}', "Invalid type: x"), ("start: /(/", "regex"),
    ("start: <|nothing|>", "unknown special token"), ("x", "")])
def test_a_grammar_that_does_not_work_is_refused_in_one_line(compiler, grammar, words):
    with pytest.raises(RequestError, match="does not work") as caught:
        compiler.compile(grammar)
    assert words in str(caught.value) and "\n" not in str(caught.value) and "start:" not in str(caught.value)
