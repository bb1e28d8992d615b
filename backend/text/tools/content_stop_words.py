"""Content stop words: stop texts of an answer that may call functions, met in its content and never in a call.

A stop text inside a call would cut its JSON and hand it out as finished. Used by front_end.py."""

from __future__ import annotations

from backend.text.stop_words import StopWords
from backend.text.tools.call_parser import CallParser
from backend.text.tools.tool_format import ToolFormat


class ContentStopWords(StopWords):
    """StopWords that gives everything out from the first call on: behind a call there is another one or the end.

    Holds back what could begin a call too, until that is certain."""

    def __init__(self, words: tuple[str, ...], tool_format: ToolFormat) -> None:
        super().__init__(words)
        self._parser = CallParser(tool_format)
        self._unsorted = ""  # neither content nor a call yet
        self._num_content = 0

    def push(self, text: str) -> str:
        if self.matched is not None:
            return ""
        self._unsorted += text
        if self._parser.num_calls:
            return self._show_rest()
        self._parser.push(text)
        shown = self._push_content()
        return shown + self.flush() if self._parser.num_calls else shown

    def flush(self) -> str:
        if not self._parser.num_calls:
            self._parser.flush(is_cut=False)
        shown = self._push_content() + super().flush()
        return shown + self._show_rest() if self.matched is None else shown

    def _push_content(self) -> str:
        """What the parser has newly found to be content, looked through for stop texts."""
        count, self._num_content = self._parser.num_content - self._num_content, self._parser.num_content
        text, self._unsorted = self._unsorted[:count], self._unsorted[count:]
        return super().push(text)

    def _show_rest(self) -> str:
        text, self._unsorted = self._unsorted, ""
        self.num_shown += len(text)
        return text
