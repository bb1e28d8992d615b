"""Guard: who may call, and how much a call may bring. What is refused never reaches an endpoint.

An ASGI middleware: 401 without a key, 431 for headers and 413 for a body that are too large, 408 for a body that does
not come. A body is taken in whole, since every endpoint reads one JSON document, whatever Content-Type says of it.
Used by door.py."""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect

from backend.serving.api_keys import KEY_REFUSAL
from backend.serving.http_body import BodyError, LateBodyError, LongBodyError, read_body
from backend.serving.openai.errors import ApiError
from backend.serving.openai.in_flight import OPEN_PATH
from backend.serving.server_options import ServerOptions

JSON_TYPE = b"application/json"


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
            # Probes bring none, and nobody without a key may have one held for them.
            first = [] if scope["path"] == OPEN_PATH else [await self._whole_body(receive)]
            if first and first[0].get("body"):
                _call_json(scope)
        except BodyError as error:
            await _refusal(error).response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return

        async def replay() -> Any:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)

    async def _whole_body(self, receive: Any) -> Any:
        """The ASGI message with the whole body, or that of a client that left. Raises BodyError."""
        try:
            return {"type": "http.request", "body": await read_body(receive, self._options), "more_body": False}
        except ClientDisconnect:
            return {"type": "http.disconnect"}

    def _check_headers(self, scope: Any) -> None:
        """Raises ApiError for a missing key, and it or BodyError for what can be refused before the body is read."""
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
            raise LongBodyError(options.max_body_bytes)


def _call_json(scope: Any) -> None:
    """The body is for endpoints JSON, also where `curl -d` calls it a form.

    A web page (which Origin gives away) has to say JSON itself: only then does its browser ask first whether a page of
    another origin may send this. Raises ApiError."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    if types and types[0].partition(b";")[0].strip().lower() == JSON_TYPE:
        return
    if any(name == b"origin" for name, _ in scope["headers"]):
        raise ApiError(400, "a web page has to send the header Content-Type: application/json; add it",
                       code="invalid_value", param="Content-Type")
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*others, (b"content-type", JSON_TYPE)]


def _refusal(error: BodyError) -> ApiError:
    status, code = (408, "body_timeout") if isinstance(error, LateBodyError) else (413, "request_too_large")
    return ApiError(status, str(error), code=code, headers={"Connection": "close"})
