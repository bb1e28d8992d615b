"""Masks of rows that follow grammars, over the demo model's tokens: what may come, and how a grammar ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backend.requests import SamplingParams
from backend.steps import GrammarEnd, RowSetup
from backend.text.tokenizer import Tokenizer
from backend.worker.grammar_rows import GrammarRows
from converter.tokenizer import prepare_tokenizer

VOCAB = 3072 + 13
END, STOP = 2, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo")
    prepare_tokenizer(Path(__file__).parents[3] / "demo/checkpoint", target, None)
    return target


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def grammars(folder: Path) -> GrammarRows:
    return GrammarRows(folder, VOCAB, [END], 4, is_pinned=False)


@dataclass
class Step:
    """A launched step whose tokens are known at once."""

    rows: tuple[int, ...]
    sampled: Sequence[int]

    def token_ids(self) -> list[int]:
        return list(self.sampled)


def begin(grammars: GrammarRows, row: int, grammar: str | None, completion: Sequence[int] = (),
          stop_ids: tuple[int, ...] = (STOP,), **options: object) -> None:
    end_ids = stop_ids if options.get("ignore_eos") else (END, *stop_ids)
    grammars.set_row(RowSetup(row, (5, 6, *completion), 2, (), SamplingParams(
        grammar=grammar, stop_ids=stop_ids, **options), end_ids, 0))


def allowed(grammars: GrammarRows, *rows: int) -> list[set[int] | GrammarEnd]:
    """The tokens that each row may take, or how its grammar ended."""
    mask = grammars.mask(rows)
    bits = np.unpackbits(mask.bits.numpy().view(np.uint8), axis=1, bitorder="little")
    assert bits.shape[1] >= VOCAB
    for line, end in zip(bits, mask.ends, strict=True):
        assert end is None or line.all()  # what is sampled there is dropped, and must not be nothing
    return [set(np.flatnonzero(line).tolist()) if end is None else end
            for line, end in zip(bits, mask.ends, strict=True)]


def test_a_row_follows_its_tokens_and_others_do_not_disturb_it(grammars, tokenizer):
    begin(grammars, 0, 'start: "ab" /[0-9]/')
    begin(grammars, 1, None)
    begin(grammars, 3, 'start: "q" | "no"')
    (ab,), (q,) = tokenizer.encode("ab"), tokenizer.encode("q")
    first, third = allowed(grammars, 0, 3)
    assert ab in first and q in third and not first & third
    grammars.will_sample(Step((1, 0, 3), (99, ab, q)))
    digits, end = allowed(grammars, 0, 3)
    assert digits == {token_id for token_id in range(VOCAB) if tokenizer.token_bytes(token_id).isdigit()
                      and len(tokenizer.token_bytes(token_id)) == 1}
    assert end == GrammarEnd()


def test_end_and_stop_ids_may_come_where_the_grammar_is_complete(grammars, tokenizer):
    letter = tokenizer.encode("a")[-1]
    for options, ends in (({}, {END, STOP}), ({"ignore_eos": True}, {STOP}),
                          ({"ignore_eos": True, "stop_ids": (END,)}, {END})):
        begin(grammars, 0, "start: /[a-c]+/", **options)
        assert not allowed(grammars, 0)[0] & {END, STOP}
        grammars.will_sample(Step((0,), (letter,)))
        found, = allowed(grammars, 0)
        assert found & {END, STOP} == ends and letter in found


def test_a_grammar_after_which_nothing_can_follow_has_ended(grammars, tokenizer):
    begin(grammars, 0, 'start: ""')
    assert allowed(grammars, 0) == [GrammarEnd()]
    begin(grammars, 0, "start: /[a-c]+/")
    allowed(grammars, 0)
    grammars.will_sample(Step((0,), (END,)))
    assert allowed(grammars, 0) == [GrammarEnd()]
    grammars.will_sample(Step((0,), (5,)))  # one step too far, as with two in flight
    assert allowed(grammars, 0) == [GrammarEnd()]


def test_a_row_that_begins_again_continues_where_it_was(grammars, tokenizer):
    ids = tokenizer.encode("abc-12")
    begin(grammars, 0, "start: /[a-z]+-[0-9]{2}/")
    expected = []
    for token_id in ids:
        expected += allowed(grammars, 0)
        grammars.will_sample(Step((0,), (token_id,)))
    assert allowed(grammars, 0) == [GrammarEnd()]
    for count in range(len(ids)):
        begin(grammars, 2, "start: /[a-z]+-[0-9]{2}/", ids[:count])
        assert allowed(grammars, 2) == [expected[count]]


def test_a_token_of_the_sequence_before_is_not_taken_by_the_next_in_its_row(grammars, tokenizer):
    begin(grammars, 0, 'start: "ab" "c"')
    allowed(grammars, 0)
    grammars.will_sample(Step((0,), tokenizer.encode("ab")))
    begin(grammars, 0, 'start: "yes"')
    assert allowed(grammars, 0) == [set(tokenizer.encode("yes")[:1])]


@pytest.mark.parametrize("completion", [(), (1234,)], ids=["at once", "on the way"])
def test_a_grammar_that_cannot_be_followed_says_why(grammars, completion):
    begin(grammars, 0, "start: nothing" if not completion else 'start: "ab"', completion)
    end, = allowed(grammars, 0)
    assert end.fault and "\n" not in end.fault


def test_grammars_asked_for_ahead_are_named_once_they_are_compiled_well_or_not(grammars):
    asked = {'start: "compiled ahead"', "start: missing"}
    grammars.compile_ahead(asked)
    named: list[str] = []
    while len(named) < len(asked):
        named += grammars.take_compiled()
    assert set(named) == asked and not grammars.take_compiled()


def test_a_row_does_not_wait_for_grammars_that_were_asked_for_ahead(folder, monkeypatch):
    """Those are held up here until the row's mask is there; one of them is the row's own."""
    rows, may_go_on, names = GrammarRows(folder, VOCAB, [END], 4, is_pinned=False), threading.Event(), []
    compiler = rows._compiler.result()
    original = type(compiler).compile

    def compile_slowly(self, grammar):
        if grammar != 'start: "mine"':
            may_go_on.wait()
        return original(self, grammar)

    monkeypatch.setattr(type(compiler), "compile", compile_slowly)
    rows.compile_ahead(f'start: "{index}"' for index in range(4))
    rows.compile_ahead(['start: "mine"'])
    for row in range(2):
        begin(rows, row, 'start: "mine"')
    assert not any(isinstance(found, GrammarEnd) for found in allowed(rows, 0, 1)) and not rows.take_compiled()
    may_go_on.set()
    while len(names) < 4:
        names += rows.take_compiled()
    rows.compile_ahead(['start: "0"'])
    assert rows.take_compiled() == ('start: "0"',)


def test_a_model_without_a_tokenizer_fails_only_the_rows_that_need_it(tmp_path):
    rows = GrammarRows(tmp_path, VOCAB, [END], 2, is_pinned=False)
    begin(rows, 1, 'start: "a"')
    end, = allowed(rows, 1)
    assert "does not exist" in end.fault


def test_grammars_beyond_what_stays_compiled_work(grammars, tokenizer):
    for index in range(70):
        begin(grammars, 0, f'start: "{index}"')
        assert allowed(grammars, 0)[0] >= set(tokenizer.encode(str(index))[:1])
