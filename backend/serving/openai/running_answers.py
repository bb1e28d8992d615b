"""Running answers: which answers are under way, so that they can be ended by their id and waited for.

Used by generation.py, the abort endpoint and server.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from backend.engine.engine_client import EngineClient
from backend.serving.openai.errors import ApiError


class RunningAnswers:
    """By the id that the answer to a client carries (`chatcmpl-…`): the engine's requests behind it."""

    def __init__(self) -> None:
        self._request_ids: dict[str, tuple[str, ...]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_stopping = False

    def __len__(self) -> int:
        return len(self._request_ids)

    @contextmanager
    def running(self, answer_id: str, request_ids: Sequence[str]) -> Iterator[None]:
        """While the body runs. Raises ApiError 503 once the server is being stopped."""
        if self.is_stopping:
            raise ApiError(503, "the server is being stopped; send the request to another, or again later",
                           type="server_error", code="stopping", headers={"Retry-After": "5"})
        self._request_ids[answer_id] = tuple(request_ids)
        self._idle.clear()
        try:
            yield
        finally:
            del self._request_ids[answer_id]
            if not self._request_ids:
                self._idle.set()

    async def abort(self, answer_id: str, engine: EngineClient) -> bool:
        """Ends an answer, which its client gets as far as it is; False for an id that is not under way."""
        request_ids = self._request_ids.get(answer_id, ())
        for request_id in request_ids:
            await engine.abort(request_id)
        return bool(request_ids)

    async def stop(self, grace_s: float) -> None:
        """No new answers from now on; returns when the last one has ended, or after `grace_s`."""
        self.is_stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except asyncio.TimeoutError:
            return
