"""Stop words: ends an answer at the first of some texts, wherever the pieces that arrive are cut.

Works on text, because a stop text's tokens depend on its neighbours. Holds back only what could become a stop text.
Used by front_end.py; knows no tokens."""

from __future__ import annotations


class StopWords:
    """Watches one answer.

    matched      the stop text that was met, or None
    match_start  characters pushed before the stop text; None until one is met
    num_shown    characters that were given out
    num_free     characters at the beginning in which no stop text may end; set by the caller, before it pushes more

    Of two stop texts the one that begins first wins, and of two that begin together the shorter. A stop text is met
    when no other can still begin before it."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = tuple(sorted(set(words), key=len))
        self._held = ""
        self.num_shown = self.num_free = 0
        self.matched: str | None = None
        self.match_start: int | None = None

    def push(self, text: str) -> str:
        """Takes the next text, gives the text that may be shown: never a part of a stop text, nothing after one."""
        if self.matched is not None:
            return ""
        self._held += text
        open_start = self._open_start()
        match = self._first_match()
        if match is not None and match[0] <= open_start:
            return self._end(*match)
        return self._show(open_start)

    def flush(self) -> str:
        """What was held back, at the end of the answer; a stop text that was complete in it still counts."""
        if self.matched is not None:
            return ""
        match = self._first_match()
        return self._end(*match) if match is not None else self._show(len(self._held))

    def _first_match(self) -> tuple[int, str] | None:
        num_free = self.num_free - self.num_shown  # of what is held
        found = [(start, word) for word in self._words
                 if (start := self._held.find(word, max(0, num_free - len(word) + 1))) >= 0]
        return min(found, key=lambda match: match[0], default=None)  # sorted by length, so the shorter wins a tie

    def _open_start(self) -> int:
        """Where the earliest stop text that is not complete yet could begin."""
        held = self._held
        for start in range(max(0, len(held) - max(map(len, self._words), default=1) + 1), len(held)):
            tail = held[start:]
            if any(len(word) > len(tail) and word.startswith(tail) for word in self._words):
                return start
        return len(held)

    def _end(self, start: int, word: str) -> str:
        self.matched, self.match_start = word, self.num_shown + start
        return self._show(start)

    def _show(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.num_shown += count
        return text
