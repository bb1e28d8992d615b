"""Chat chunks: `chat.completion.chunk` objects as server-sent events, the common one put together from bytes.

A streamed token costs the front end a few microseconds here; a model of its fields would cost ten times that. Used by
chat.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class ChatChunks:
    """The chunks of one answer.

    has_usage  each carries `usage`, which is null but in the last one"""

    def __init__(self, answer_id: str, created_s: int, model: str, has_usage: bool) -> None:
        head = {"id": answer_id, "object": "chat.completion.chunk", "created": created_s, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if has_usage else b"]}") + b"\n\n"

    def text(self, index: int, text: str) -> bytes:
        """More text of choice `index`, without logprobs: what nearly all chunks are."""
        return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}%b' % (
            self._head, index, _encode(text), self._tail)

    def delta(self, index: int, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None,
              finish_reason: str | None = None) -> bytes:
        """Any other chunk of a choice."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head + _encode(choice) + self._tail

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The last one, without choices."""
        return self._head + b'],"usage":' + _encode(usage) + b"}\n\n"
