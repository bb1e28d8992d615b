"""Response store: answers that a later request names with previous_response_id, kept in memory within bounds.

The least recently used are forgotten first. A server with several workers has a store in each. Used by responses.py."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """body: the answer as it was sent. input_items: all that it answers, earlier turns included; instructions are not
    among them, which the API does not carry over. num_bytes: the size of both as JSON."""

    body: Mapping[str, Any]
    input_items: tuple[Mapping[str, Any], ...]
    num_bytes: int

    @property
    def items(self) -> tuple[Mapping[str, Any], ...]:
        """The conversation up to and with this answer."""
        return (*self.input_items, *self.body["output"])


def stored(body: Mapping[str, Any], input_items: tuple[Mapping[str, Any], ...]) -> StoredResponse:
    """Earlier items are counted with every answer to them, because each of these keeps them in memory."""
    return StoredResponse(body, input_items, len(msgspec.json.encode((body, input_items))))


class ResponseStore:
    """Answers by id. One that alone exceeds max_bytes is not kept."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response: StoredResponse) -> None:
        self._responses[response.body["id"]] = response
        self.num_bytes += response.num_bytes
        while len(self._responses) > self._max_responses or self.num_bytes > self._max_bytes:
            self.num_bytes -= self._responses.popitem(last=False)[1].num_bytes

    def get(self, response_id: str) -> StoredResponse | None:
        found = self._responses.get(response_id)
        if found is not None:
            self._responses.move_to_end(response_id)
        return found

    def delete(self, response_id: str) -> bool:
        """Whether it was there."""
        found = self._responses.pop(response_id, None)
        self.num_bytes -= found.num_bytes if found is not None else 0
        return found is not None
