"""Running answers: which answers are under way, so that they can be ended by their id.

Used by generation.py and the abort endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from backend.engine.engine_client import EngineClient


class RunningAnswers:
    """By the id that the answer to a client carries (`chatcmpl-…`): the engine's requests behind it."""

    def __init__(self) -> None:
        self._request_ids: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._request_ids)

    @contextmanager
    def running(self, answer_id: str, request_ids: Sequence[str]) -> Iterator[None]:
        """While the body runs."""
        self._request_ids[answer_id] = tuple(request_ids)
        try:
            yield
        finally:
            del self._request_ids[answer_id]

    async def abort(self, answer_id: str, engine: EngineClient) -> bool:
        """Ends an answer, which its client gets as far as it is; False for an id that is not under way."""
        request_ids = self._request_ids.get(answer_id, ())
        for request_id in request_ids:
            await engine.abort(request_id)
        return bool(request_ids)
