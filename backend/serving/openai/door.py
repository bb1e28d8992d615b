"""Door: what each call passes before it reaches an endpoint, from the outside in.

    Recorder   request id, counts, log, trace        → CrossOrigin  which pages of other origins may call
    Guard      API key, sizes                        → InFlight     deadline, the server's stop
    → the application of app.py

Used by server.py."""

from __future__ import annotations

from typing import Any

from starlette.middleware.cors import CORSMiddleware

from backend.serving.openai.guard import Guard
from backend.serving.openai.in_flight import InFlight
from backend.serving.openai.recorder import REQUEST_ID_HEADER, TIMING_HEADER, Recorder
from backend.serving.operations import Operations


class Door:
    """The whole ASGI application.

    in_flight  the calls under way, for whoever stops the server"""

    def __init__(self, app: Any, operations: Operations) -> None:
        options = operations.options
        self.in_flight = InFlight(app)
        guarded: Any = Guard(self.in_flight, options)
        if options.cross_origin is not None:
            allowed = options.cross_origin
            guarded = CORSMiddleware(
                guarded, allow_origins=allowed.origins, allow_methods=allowed.methods, allow_headers=allowed.headers,
                allow_credentials=allowed.allows_credentials,
                expose_headers=(REQUEST_ID_HEADER.decode(), TIMING_HEADER.decode()))
        self._outermost = Recorder(guarded, operations)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._outermost(scope, receive, send)
