"""Logprobs in OpenAI's two shapes: a list of tokens for chats, parallel lists for completions. Used by both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from backend.requests import TokenLogprobs
from backend.text.detokenizer import Detokenizer
from backend.text.tokenizer import Tokenizer

# JSON knows no infinity: a token that a model rules out has the lowest number that OpenAI's own answers show.
_LOWEST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""
    return {"content": [{**_token(tokenizer, token.token_id, token.logprob),
                         "top_logprobs": [_token(tokenizer, *pair) for pair in token.top]} for token in tokens],
            "refusal": None}


class CompletionLogprobsWriter:
    """`choices[].logprobs` of a completion, which may come in parts: it knows where the text has got to.

    skip_special_tokens  as in the text, so that text_offset is of that text"""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_ids: Sequence[int] = ()) -> None:
        """prompt_ids: what the text continues and does not contain."""
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens, prompt_ids)
        self._offset = 0

    def write(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The next tokens; one whose logprob is NaN has none, as a prompt's first."""
        document: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            is_known = not math.isnan(token.logprob)
            document["tokens"].append(token_text(self._tokenizer, token.token_id))
            document["token_logprobs"].append(finite(token.logprob) if is_known else None)
            document["top_logprobs"].append(self._top(token) if is_known and token.top else None)
            document["text_offset"].append(self._offset)
            self._offset += len(self._detokenizer.push([token.token_id]))
        return document

    def _top(self, token: TokenLogprobs) -> dict[str, float]:
        """By text; of tokens that read alike, the likeliest. The chosen one is always there."""
        found: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            text = token_text(self._tokenizer, token_id)
            found[text] = max(found.get(text, _LOWEST), finite(logprob))
        return found


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token for people to read: U+FFFD where it is a part of a character, the name where it is special."""
    if token_id in tokenizer.special_ids:
        return tokenizer.id_to_token(token_id) or ""
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    """As JSON can say it."""
    return max(logprob, _LOWEST)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": token_text(tokenizer, token_id), "logprob": finite(logprob),
            "bytes": list(tokenizer.token_bytes(token_id))}
