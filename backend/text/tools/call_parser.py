"""Call parser: an answer's text, as it arrives, into content and calls of functions.

What it gives for pieces, put together, is the same wherever the text is cut. Used by serving and
content_stop_words.py; knows no tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.text.tools.tool_format import CallSyntax, ToolFormat


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What a piece adds to call `index` of an answer: first id and name, then text of its arguments, which are JSON."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class AnswerDelta:
    """What a piece of text adds to an answer."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class CallParser:
    """Reads one answer.

    num_calls    calls begun so far
    num_content  characters of content before the first of them

    White space between content and a call belongs to neither. What begins like a call and does not become one is
    content, but only at the end of the answer; what the end keeps from becoming one is not."""

    def __init__(self, tool_format: ToolFormat) -> None:
        self._format = tool_format
        self._held = ""
        self._skipped = ""  # white space in front of what begins like a call
        self._state = self._in_reasoning if tool_format.is_begun else self._at_start
        self._syntax: CallSyntax | None = None
        self._arguments = _ObjectEnd()
        self._delta = AnswerDelta()
        self.num_calls = self.num_content = 0

    @property
    def ends_in_calls(self) -> bool:
        """Whether the answer so far calls functions, the last call's arguments being whole."""
        return self.num_calls > 0 and self._state != self._in_arguments

    def push(self, text: str) -> AnswerDelta:
        """Takes the next text, gives what is certain."""
        self._held += text
        while self._held and self._state():
            pass
        return self._given()

    def flush(self, is_cut: bool) -> AnswerDelta:
        """At the end of the answer: what was held back.

        is_cut  the model did not end it, so that a part of a marker is taken for the beginning of a call"""
        content = self._held[:self._call_start(is_cut)]
        if len(content) < len(self._held):
            content = content.rstrip()
        elif self._state == self._in_name:
            content = self._skipped + content
        if self._state != self._in_closing and (content.strip() or not self.num_calls):
            self._show(content)
        self._held = ""
        return self._given()

    def _call_start(self, is_cut: bool) -> int:
        """Where in the held text the call begins that the answer's end cut off; the text's length where none does."""
        if self._state == self._in_name:
            return 0 if self._syntax.beginning.fullmatch(self._held) else len(self._held)
        if self._state in (self._at_start, self._in_content):
            place = _open_place(self._held, [syntax.opening for syntax in self._format.syntaxes
                                             if not syntax.is_initial])
            # A special token is never text, a letter like "<" may be the end of one.
            if is_cut or self._held[place:].startswith(tuple(self._format.special)):
                return place
        return len(self._held)

    # Each state takes what it can from the held text, and says whether another state now goes on.

    def _at_start(self) -> bool:
        begun = self._held.lstrip()
        if not begun:
            return False
        self._syntax = next((syntax for syntax in self._format.syntaxes
                             if syntax.is_initial and begun.startswith(syntax.opening)), None)
        if self._syntax is not None:
            self._skipped = self._held[:-len(begun)]
            self._held, self._state = begun, self._in_name
            return True
        start = self._format.reasoning[0] if self._format.reasoning else ""
        if len(begun) < len(start) and start.startswith(begun):
            return False
        self._state = self._in_reasoning if start and begun.startswith(start) else self._in_content
        return True

    def _in_reasoning(self) -> bool:
        end = self._format.reasoning[1]
        place = self._held.find(end)
        if place >= 0:
            self._take(place + len(end))
            self._state = self._in_content
            return True
        self._take(_open_place(self._held, (end,)))
        return False

    def _in_content(self) -> bool:
        syntaxes = [syntax for syntax in self._format.syntaxes if not syntax.is_initial]
        places = [(place, syntax) for syntax in syntaxes if (place := self._held.find(syntax.opening)) >= 0]
        if places:
            place, self._syntax = min(places, key=lambda found: found[0])
            content = self._held[:place].rstrip()
            self._show(content)
            self._skipped = self._held[len(content):place]
            self._held, self._state = self._held[place:], self._in_name
            return True
        place = _open_place(self._held, [syntax.opening for syntax in syntaxes])
        self._take(len(self._held[:place].rstrip()))
        return False

    def _in_name(self) -> bool:
        match = self._syntax.name.match(self._held)
        if match is None:
            return False
        name = json.loads(match[1]) if match[1].startswith('"') else match[1]
        self._delta.calls.append(CallDelta(self.num_calls, id=f"call_{secrets.token_hex(12)}", name=name))
        self.num_calls += 1
        self._held, self._state, self._arguments = self._held[match.end():], self._in_arguments, _ObjectEnd()
        return True

    def _in_arguments(self) -> bool:
        end = self._arguments.push(self._held)
        taken = len(self._held) if end is None else end
        self._delta.calls.append(CallDelta(self.num_calls - 1, self._held[:taken]))
        self._held = self._held[taken:]
        if end is not None:
            self._state = self._in_closing
        return end is not None

    def _in_closing(self) -> bool:
        match = self._syntax.closing.match(self._held)
        if match is None:
            return False
        self._held, self._state = self._held[match.end():], self._in_content
        return True

    def _take(self, count: int) -> None:
        self._show(self._held[:count])
        self._held = self._held[count:]

    def _show(self, text: str) -> None:
        self._delta.content += text
        self.num_content += 0 if self.num_calls else len(text)

    def _given(self) -> AnswerDelta:
        delta, self._delta = self._delta, AnswerDelta()
        return delta


class _ObjectEnd:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False

    def push(self, text: str) -> int | None:
        """Characters of this piece up to and with the last brace, None where it goes on."""
        for index, letter in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = letter == "\\"
                self._in_string = letter != '"'
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None


def _open_place(text: str, markers: Sequence[str]) -> int:
    """Where the earliest marker that is not complete yet could begin; the text's length where none could."""
    for place in range(max(0, len(text) - max(map(len, markers), default=1) + 1), len(text)):
        if any(marker.startswith(text[place:]) for marker in markers):
            return place
    return len(text)
