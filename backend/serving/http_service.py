"""HTTP service: an ASGI application of ours on a port, by uvicorn. Used by both HTTP servers. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn

from backend.errors import ConfigError
from backend.serving.http_protocol import http_protocol
from backend.serving.server_options import ServerOptions

# Longer than clients and proxies keep a connection (httpx 5 s, nginx 60 s), so that none sends a request into one that
# is being closed.
KEEP_ALIVE_S = 75


def listen(host: str, port: int, what: str, option: str) -> socket.socket:
    """A listening socket; port 0 leaves its choice to the system.

    what, option  who listens, and the option that chooses its port, for the ConfigError where the port is taken"""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"{what} cannot listen on {host}:{port} ({error.strerror}); choose another with "
                          f"{option}") from None


class HttpService:
    """An ASGI application on a listening socket, which is closed with it. Belongs to one event loop."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        self._server = _Server(uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off",
            ssl_keyfile=options.tls_key, ssl_certfile=options.tls_cert,
            http=http_protocol(options), timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=1))
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


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command line owns the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield
