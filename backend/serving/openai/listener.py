"""Listener: the port of OpenAI's API, and uvicorn on it; while the model loads, a server that says just that.

Used by server.py and embedded.py."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn

from backend.errors import ConfigError
from backend.serving.http_protocol import http_protocol
from backend.serving.openai.errors import ApiError
from backend.serving.server_options import ServerOptions


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 leaves its choice to the system. Raises ConfigError where the port is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"OpenAI's API cannot listen on {host}:{port} ({error.strerror}); choose another with "
                          "--server_port") from None


class HttpService:
    """An ASGI application on a listening socket, which is closed with it. Belongs to one event loop."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        self._server = _Server(uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off",
            ssl_keyfile=options.tls_key, ssl_certfile=options.tls_cert,
            http=http_protocol(options.max_header_bytes), h11_max_incomplete_event_size=options.max_header_bytes,
            timeout_graceful_shutdown=1))
        self._serving: asyncio.Task | None = None

    async def start(self, listener: socket.socket) -> None:
        """Returns once calls are answered."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Closes connections and the socket; what still runs has a second."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving


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


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command line owns the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield
