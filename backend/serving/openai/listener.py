"""Listener: the port of OpenAI's API; while the model loads, a server on it that says just that.

Used by server.py and embedded.py."""

from __future__ import annotations

import socket
from typing import Any

from backend.serving import http_service
from backend.serving.http_service import HttpService
from backend.serving.openai.errors import ApiError
from backend.serving.server_options import ServerOptions


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 leaves its choice to the system. Raises ConfigError where the port is taken."""
    return http_service.listen(host, port, "OpenAI's API", "--server_port")


class LoadingServer:
    """Answers 503 to everything until the real server takes the port over; no connection is refused in between."""

    def __init__(self, host: str, port: int, options: ServerOptions) -> None:
        self._listener = listen(host, port)
        self._http = HttpService(_say_that_the_model_loads, options)
        self._is_over = False

    async def start(self) -> None:
        # uvicorn closes the socket that it serves; this one stays open, and with it the queue of connections.
        await self._http.start(self._listener.dup())

    async def hand_over(self) -> socket.socket:
        """Ends it and gives the listening socket away."""
        await self._end()
        return self._listener

    async def stop(self) -> None:
        """Ends it, where it still runs, and closes the port."""
        if not self._is_over:
            await self._end()
            self._listener.close()

    async def _end(self) -> None:
        self._is_over = True
        await self._http.stop()


async def _say_that_the_model_loads(scope: Any, receive: Any, send: Any) -> None:
    error = ApiError(503, "the model is being loaded; try again in a while", "server_error", "loading",
                     headers={"Retry-After": "5", "Connection": "close"})
    await error.response()(scope, receive, send)
