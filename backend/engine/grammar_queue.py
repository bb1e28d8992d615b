"""Grammar queue: which waiting sequences have to wait for their grammars to be compiled.

A grammar may take a third of a second, a step some milliseconds, and all rows of a step wait for its masks. So while
others run, a sequence is not admitted before a result has named its grammar. Used by scheduler.py."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from backend.engine.sequence import Sequence

NUM_REMEMBERED = 64  # compiled grammars: as many as a rank keeps
MAX_ASKED = 32  # that are not compiled yet: what is asked for stays asked for, also when its request is gone


class GrammarQueue:
    """What has been asked of the ranks, and what they have said."""

    def __init__(self) -> None:
        self._is_compiled: dict[str, bool] = {}  # by grammar, in order of the last use; False: asked for

    def holds_back(self, sequence: Sequence) -> bool:
        """Whether its grammar is not known to be compiled. One that ran before has waited already."""
        grammar = sequence.sampling.grammar
        return not (grammar is None or sequence.was_admitted or self._is_compiled.get(grammar, False))

    def ask(self, sequences: Iterable[Sequence]) -> tuple[str, ...]:
        """The grammars of these that are to be compiled and have not been asked for."""
        room = MAX_ASKED - sum(not is_compiled for is_compiled in self._is_compiled.values())
        wanted = dict.fromkeys(sequence.sampling.grammar for sequence in sequences if self.holds_back(sequence)
                               and sequence.sampling.grammar not in self._is_compiled)
        new = dict.fromkeys(islice(wanted, room), False)
        self._is_compiled.update(new)
        return tuple(new)

    def compiled(self, grammars: Iterable[str]) -> None:
        """A result has named them."""
        for grammar in grammars:
            self._remember(grammar)

    def used(self, sequence: Sequence) -> None:
        """It was admitted: where its grammar was not compiled, its first step has that done."""
        if sequence.sampling.grammar is not None:
            self._remember(sequence.sampling.grammar)

    def _remember(self, grammar: str) -> None:
        """The last used of those that are compiled. The ranks forget in the same order."""
        self._is_compiled.pop(grammar, None)
        self._is_compiled[grammar] = True
        ready = [grammar for grammar, is_compiled in self._is_compiled.items() if is_compiled]
        for grammar in ready[:-NUM_REMEMBERED]:
            del self._is_compiled[grammar]
