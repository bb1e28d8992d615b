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


class OpenAiServer:
    """`start` and `stop` are called once each, on the event loop that serves."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self.app: FastAPI = build_app(context)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which port 0 leaves to the system. Raises ConfigError where it is taken."""
        try:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise ConfigError(f"OpenAI's API cannot listen on {host}:{port} ({error.strerror}); choose another with "
                              "--server_port") from None
        self._server = _Server(uvicorn.Config(self.app, log_config=None, log_level="warning", access_log=False,
                                              lifespan="off", timeout_graceful_shutdown=1))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.005)
        return listener.getsockname()[1]

    async def stop(self, grace_s: float = 30.0) -> None:
        """Refuses new answers, lets the running ones finish for at most `grace_s`, then closes the port."""
        await self._context.running.stop(grace_s)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the command line owns the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield
