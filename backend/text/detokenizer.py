"""Detokenizer: token ids to text while they arrive, so that what was given out is never taken back.

Joins the tokens' bytes and holds back only an unfinished UTF-8 character; constant work per token. The pieces joined
are what `Tokenizer.decode` gives for all ids at once. Used by front_end.py."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from backend.text.tokenizer import Tokenizer

# An unfinished character has at most 3 bytes, so it cannot begin earlier than 3 tokens that have bytes.
_NUM_CONTEXT_TOKENS = 8


class Detokenizer:
    """The text of one completion as it grows."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()) -> None:
        """prompt_ids: what the completion continues. It keeps its first space, and finishes a character that the prompt
        left unfinished; without it, the completion is read as a text of its own."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        is_first = not any(token_id not in self._skipped and tokenizer.token_bytes(token_id) for token_id in prompt_ids)
        self._num_leading_spaces = tokenizer.num_leading_spaces if is_first else 0
        for token_id in prompt_ids[-_NUM_CONTEXT_TOKENS:]:
            self._decode(token_id)

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids add and that cannot change any more; an id with no token adds nothing."""
        return self._without_leading_spaces("".join(map(self._decode, ids)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD where the last character stayed unfinished."""
        return self._without_leading_spaces(self._utf8.decode(b"", final=True))

    @property
    def is_inside_character(self) -> bool:
        """Whether the last character is unfinished, so that the tokens to come belong to it."""
        return bool(self._utf8.getstate()[0])

    def _decode(self, token_id: int) -> str:
        return "" if token_id in self._skipped else self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def _without_leading_spaces(self, text: str) -> str:
        while text and self._num_leading_spaces:
            if text[0] != " ":
                self._num_leading_spaces = 0
                break
            text = text[1:]
            self._num_leading_spaces -= 1
        return text
