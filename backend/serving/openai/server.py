"""OpenAI server: the application of app.py on a port of its own, in this process. Used by backend.serve."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn
from fastapi import FastAPI

from backend.errors import ConfigError
from backend.serving.openai.app import build_app
from backend.serving.openai.context import ApiContext
from backend.serving.openai.door import Door
from backend.serving.operations import Operations
from backend.serving.server_options import ServerOptions


class OpenAiServer:
    """`start` and `stop` are called once each, on the event loop that serves.

    operations  shared with the other servers of this process; None: its own, with the default options"""

    def __init__(self, context: ApiContext, operations: Operations | None = None) -> None:
        self._context = context
        self._operations = operations or Operations(ServerOptions(), context.engine)
        self.app: FastAPI = build_app(context)
        self._door = Door(self.app, self._operations)
        self.app.state.operations, self.app.state.door = self._operations, self._door
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which port 0 leaves to the system. Raises ConfigError where it is taken."""
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ConfigError(f"OpenAI's API cannot listen on {host}:{port} ({error.strerror}); choose another with "
                              "--server_port") from None
        options = self._operations.options
        self._operations.start()
        self._server = _Server(uvicorn.Config(
            self._door, log_config=None, log_level="warning", access_log=False, lifespan="off",
            ssl_keyfile=options.tls_key, ssl_certfile=options.tls_cert,
            h11_max_incomplete_event_size=options.max_header_bytes, timeout_graceful_shutdown=1))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.005)
        return listener.getsockname()[1]

    async def stop(self, grace_s: float = 30.0) -> None:
        """Refuses new answers, lets the running ones finish for at most `grace_s`, then closes the port."""
        await self._door.in_flight.stop(grace_s)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        await self._operations.stop()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command line owns the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield
