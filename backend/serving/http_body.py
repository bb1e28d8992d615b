"""HTTP body: a request's whole body within the options' bounds. Used by both HTTP servers. Imports no torch."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect

from backend.errors import DeadlineError, MillraceError, RequestError
from backend.serving.server_options import ServerOptions


class BodyError(MillraceError):
    """A body that is not read to its end; what would still come of it must not be taken for the next call."""


class LateBodyError(BodyError, DeadlineError):
    """It was not there in time."""


class LongBodyError(BodyError, RequestError):
    """It is longer than allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is longer than {limit} bytes; send less at once")


async def read_body(receive: Any, options: ServerOptions) -> bytes:
    """receive: ASGI's. Raises LateBodyError, LongBodyError before a longer one is in memory, and ClientDisconnect."""
    limit_s = options.body_timeout_s
    try:
        return await asyncio.wait_for(_read(receive, options.max_body_bytes), limit_s)
    except asyncio.TimeoutError:
        raise LateBodyError(f"the body was not there within {limit_s:g} s; send it at once") from None


async def _read(receive: Any, limit: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise LongBodyError(limit)
        if not message.get("more_body", False):
            return b"".join(chunks)
