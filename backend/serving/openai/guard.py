"""Guard: who may call, and how much a call may bring. What is refused never reaches an endpoint.

An ASGI middleware: 401 without a key, 431 for headers and 413 for a body that are too large, 408 for a body that does
not come. A body is taken in whole, since every endpoint reads one JSON document. Used by door.py."""

from __future__ import annotations

import asyncio
from typing import Any

from backend.serving.api_keys import KEY_REFUSAL
from backend.serving.openai.errors import ApiError
from backend.serving.openai.in_flight import OPEN_PATH
from backend.serving.server_options import ServerOptions


class Guard:
    """Wraps an application."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            if scope["path"] == OPEN_PATH:  # reads none, and nobody without a key may have one held for them
                await self._app(scope, receive, send)
                return
            message = await self._body_in_time(receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        first = [message]

        async def replay() -> Any:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)

    def _check_headers(self, scope: Any) -> None:
        """Raises ApiError for a missing key, and for what can be refused before the body is read."""
        options, size, key, length = self._options, 0, None, 0
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"authorization":
                key = value
            elif name == b"content-length":
                length = int(value) if value.isdigit() else 0
        if scope["path"] != OPEN_PATH and not options.api_keys.lets_in(key):
            raise ApiError(401, KEY_REFUSAL, "authentication_error", "invalid_api_key",
                           headers={"WWW-Authenticate": "Bearer"})
        if size > options.max_header_bytes:
            raise ApiError(431, f"the headers have {size} bytes, more than the {options.max_header_bytes} that are "
                           "allowed; send fewer", code="headers_too_large")
        if length > options.max_body_bytes:
            raise self._too_large()

    async def _body_in_time(self, receive: Any) -> Any:
        reading = asyncio.create_task(self._body(receive))
        try:
            done, _ = await asyncio.wait({reading}, timeout=self._options.body_timeout_s)
        finally:
            reading.cancel()
        if not done:
            raise ApiError(408, f"the body was not there within {self._options.body_timeout_s:g} s; send it at once",
                           code="body_timeout", headers={"Connection": "close"})
        return reading.result()

    async def _body(self, receive: Any) -> Any:
        """The ASGI message with the whole body, or that of a client that left."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._options.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(chunks), "more_body": False}

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self._options.max_body_bytes} bytes; send less at once",
                        code="request_too_large", headers={"Connection": "close"})
