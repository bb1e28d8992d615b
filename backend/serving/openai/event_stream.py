"""Event stream: server-sent events, and what both kinds of answers need: an end when the client leaves.

The first event is made before the status line is sent, so that an error still is the status. Used by the endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

from backend.errors import MillraceError
from backend.serving.openai.errors import ApiError, api_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
# For the schema of a route that answers with one JSON object or, asked to stream, with events.
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "One JSON object; with `stream`, events of its parts."}}


class ClientLeft(ApiError):
    """Nobody reads this answer: its client closed the connection."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed its connection", code="cancelled")


async def event_stream(request: Request, events: AsyncGenerator[bytes, None]) -> Response:
    """The response that sends `events`, each a whole `data: …` of bytes. Raises what comes before the first one."""
    try:
        first = await while_connected(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return _EventStream(first, events)


async def while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer, which is given up, with ClientLeft, when the client leaves."""
    answering, leaving = asyncio.ensure_future(answer), asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientLeft
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        # A proxy that buffers would give everything at the end.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sending, leaving = asyncio.create_task(self._send(scope, send)), asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()

    async def _send(self, scope: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except MillraceError as error:
            await send({"type": "http.response.body", "more_body": True,
                        "body": api_error(error).in_stream(scope)})
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
