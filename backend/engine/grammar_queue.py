"""Grammar queue: which waiting sequences have to wait for their grammars to be compiled.

A grammar may take a third of a second, a step some milliseconds, and all rows of a step wait for its masks. So while
others run, a sequence is not admitted before a result has named its grammar. Used by scheduler.py."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from backend.engine.sequence import Sequence
from backend.steps import NUM_COMPILED_GRAMMARS

MAX_ASKED = 32  # that are not compiled yet: what is asked for stays asked for, also when its request is gone


class GrammarQueue:
    """What has been asked of the ranks and not answered, and what they have compiled, in order of the last use."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        self._compiled: OrderedDict[str, None] = OrderedDict()

    def holds_back(self, sequence: Sequence) -> bool:
        """Whether its grammar is not known to be compiled. One that ran before has waited already."""
        grammar = sequence.sampling.grammar
        return not (grammar is None or sequence.was_admitted or grammar in self._compiled)

    def ask(self, sequences: Iterable[Sequence]) -> tuple[str, ...]:
        """The grammars of these that are to be compiled and have not been asked for."""
        wanted = dict.fromkeys(sequence.sampling.grammar for sequence in sequences if self.holds_back(sequence))
        new = tuple(islice((grammar for grammar in wanted if grammar not in self._asked), MAX_ASKED - len(self._asked)))
        self._asked.update(new)
        return new

    def compiled(self, grammars: Iterable[str]) -> None:
        """A result has named them."""
        for grammar in grammars:
            self._remember(grammar)

    def used(self, sequence: Sequence) -> None:
        """It was admitted: where its grammar was not compiled, its first step has that done."""
        if sequence.sampling.grammar is not None:
            self._remember(sequence.sampling.grammar)

    def _remember(self, grammar: str) -> None:
        """The ranks forget in the same order."""
        self._asked.discard(grammar)
        self._compiled[grammar] = None
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > NUM_COMPILED_GRAMMARS:
            self._compiled.popitem(last=False)
