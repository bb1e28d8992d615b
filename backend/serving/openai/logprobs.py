"""Logprobs in OpenAI's two shapes: a list of tokens for chats, parallel lists for completions. Used by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.requests import TokenLogprobs
from backend.text.tokenizer import Tokenizer

# JSON knows no infinity: a token that a model rules out has the lowest number that OpenAI's own answers show.
_LOWEST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""
    return {"content": [{**_token(tokenizer, token.token_id, token.logprob),
                         "top_logprobs": [_token(tokenizer, *pair) for pair in token.top]} for token in tokens],
            "refusal": None}


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
