"""Grammar rows: which tokens may come next in the rows whose requests have a grammar.

A row's matcher needs the token that the step before sampled, and that is known on the device first. So a step's forward
pass is launched, then its masks are made here, on the CPU while the device computes: the earlier steps' tokens are
waited for, the matchers take them, and the bits go over in one upload in front of the sampling. Every rank does this by
itself and comes to the same bits. Rows without a grammar cost nothing.
Used by model_runner.py; torch alone holds the memory, because it can be pinned."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backend.errors import MillraceError
from backend.steps import NUM_COMPILED_GRAMMARS, GrammarEnd, RowSetup

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from backend.text.grammar_compiler import GrammarCompiler
    from backend.worker.model_runner import RunningStep

# That fill masks, some 50 us each: for 64 rows two to four are fastest on 16 cores, sixteen take twice as long.
MAX_THREADS = 4


@dataclass(slots=True)
class _Row:
    """One sequence's place in its grammar.

    compiled  the matcher before the first token, being made;  matcher: a copy of it, once it is followed
    end       why nothing more can come, once that is so"""

    setup: RowSetup
    compiled: Future[LLMatcher]
    matcher: LLMatcher | None = None
    end: GrammarEnd | None = None


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which tokens C rows of the logits may take.

    bits  [C, ceil(V / 32)] int32 on the host, pinned where there is a GPU: bit v % 32 of word v // 32 is token v's
    ends  of the rows whose grammar has ended: what is sampled for them means nothing"""

    bits: Tensor
    ends: tuple[GrammarEnd | None, ...]


class GrammarRows:
    """The grammars of a rank's rows; those that have none are named to nothing here but set_row and will_sample.

    tokenizer_dir  read in the background, so that it is there when the first grammar comes
    end_ids        the model's own"""

    def __init__(self, tokenizer_dir: Path, vocab_size: int, end_ids: Sequence[int], num_rows: int,
                 is_pinned: bool) -> None:
        self._vocab_size = vocab_size
        self._model_end_ids = frozenset(end_ids)
        self._is_pinned = is_pinned
        self._rows: list[_Row | None] = [None] * num_rows
        self._unread: deque[tuple[RunningStep, list[tuple[int, _Row]]]] = deque()
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._ahead: dict[str, Future[LLMatcher]] = {}  # asked for, and no row's yet
        self._known: list[str] = []  # that were there when they were asked for
        # Of a row's grammar, which a step waits for, and of those that only requests in the queue wait for.
        self._row_thread = ThreadPoolExecutor(1, "grammar")
        self._ahead_threads = ThreadPoolExecutor(2, "grammar-ahead")
        self._compiler = self._row_thread.submit(_make_compiler, Path(tokenizer_dir), vocab_size)

    def compile_ahead(self, grammars: Iterable[str]) -> None:
        """In the background, so that no mask has to wait for them."""
        for grammar in grammars:
            if grammar in self._compiled:
                self._known.append(grammar)
            else:
                self._ahead[grammar] = self._compile(grammar, self._ahead_threads)

    def take_compiled(self) -> tuple[str, ...]:
        """Those asked for ahead whose compilation has ended since the last call, well or not."""
        ended = [grammar for grammar, compiled in self._ahead.items() if compiled.done()]
        for grammar in ended:
            del self._ahead[grammar]
        known, self._known = self._known, []
        return (*known, *ended)

    def set_row(self, setup: RowSetup) -> None:
        """A sequence takes its row; its grammar is compiled in the background, unless it is known."""
        grammar = setup.sampling.grammar
        self._rows[setup.row] = None if grammar is None else _Row(setup, self._compile_now(grammar))

    def will_sample(self, step: RunningStep) -> None:
        """A step was launched, whose tokens the matchers will take before the next masks are made."""
        samples = [(index, self._rows[row]) for index, row in enumerate(step.rows) if self._rows[row] is not None]
        if samples:
            self._unread.append((step, samples))

    def mask(self, rows: Sequence[int]) -> TokenMask:
        """The tokens that may come next in rows that all have a grammar. Waits for the steps before."""
        self._take_tokens()
        followed = [self._rows[row] for row in rows]
        for row in followed:
            self._begin(row)
        num_words = -(-self._vocab_size // 32)
        bits = torch.empty((len(rows), num_words), dtype=torch.int32, pin_memory=self._is_pinned)
        bits.numpy().fill(0)  # not by torch: its threads would spin for milliseconds on the cores that are needed next
        live = [(row.matcher, index) for index, row in enumerate(followed) if row.end is None]
        if live:
            _executor().unsafe_compute_mask_ptr(live, bits.data_ptr(), num_words * 4, len(rows))
        words = bits.numpy().view(np.uint32)
        for row, line in zip(followed, words, strict=True):
            self._finish_line(row, line)
        return TokenMask(bits, tuple([row.end for row in followed]))

    def _finish_line(self, row: _Row, line: np.ndarray) -> None:
        """End ids are ours to allow: a request has its own, and llguidance knows one."""
        matcher = row.matcher
        if row.end is None and matcher.is_error():
            row.end = _failed(matcher)
        if row.end is None:
            _clear(line, [self._compiler.result().end_id])
            is_accepting = matcher.is_accepting()
            if not line.any():
                row.end = GrammarEnd() if is_accepting else _failed(matcher)
            elif is_accepting:
                _set(line, row.setup.end_ids)
                if row.setup.sampling.ignore_eos:
                    _clear(line, self._model_end_ids - set(row.setup.sampling.stop_ids))
        if row.end is not None:
            line[:] = 0xFFFFFFFF

    def _take_tokens(self) -> None:
        while self._unread:
            step, samples = self._unread.popleft()
            token_ids = step.token_ids()
            for index, row in samples:
                if row.end is None:
                    _advance(row, token_ids[index])

    def _begin(self, row: _Row) -> None:
        """A copy of the compiled matcher that has taken what the completion holds so far."""
        if row.matcher is not None or row.end is not None:
            return
        try:
            row.matcher = row.compiled.result().deep_copy()
        except MillraceError as error:
            row.end = GrammarEnd(str(error))
            return
        for token_id in row.setup.token_ids[row.setup.num_prompt_tokens:]:
            _advance(row, token_id)

    def _compile_now(self, grammar: str) -> Future[LLMatcher]:
        """For a row, past all that was asked for ahead and has not begun."""
        pending = self._ahead.pop(grammar, None)
        if pending is not None and pending.cancel():
            self._compiled.pop(grammar, None)
        return self._compile(grammar, self._row_thread)

    def _compile(self, grammar: str, threads: ThreadPoolExecutor) -> Future[LLMatcher]:
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = threads.submit(lambda: self._compiler.result().compile(grammar))
            if len(self._compiled) > NUM_COMPILED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return compiled


def _make_compiler(tokenizer_dir: Path, vocab_size: int) -> GrammarCompiler:
    from backend.text.grammar_compiler import GrammarCompiler
    from backend.text.tokenizer import Tokenizer

    return GrammarCompiler(Tokenizer(tokenizer_dir), vocab_size)


@functools.cache
def _executor() -> LLExecutor:
    """Its threads make the masks of a step side by side."""
    from llguidance import LLExecutor

    return LLExecutor(min(MAX_THREADS, os.cpu_count() or 1))


def _advance(row: _Row, token_id: int) -> None:
    if token_id in row.setup.end_ids:
        row.end = GrammarEnd()
    elif not row.matcher.consume_token(token_id):
        row.end = _failed(row.matcher)


def _failed(matcher: LLMatcher) -> GrammarEnd:
    from backend.text.grammar_compiler import reason

    return GrammarEnd(reason(matcher) or "no token can follow")


def _set(line: np.ndarray, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        if token_id // 32 < len(line):
            line[token_id // 32] |= np.uint32(1 << token_id % 32)


def _clear(line: np.ndarray, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        if token_id // 32 < len(line):
            line[token_id // 32] &= ~np.uint32(1 << token_id % 32)
