"""OpenAI server: the application of app.py on a port of its own, in this process. Used by backend.serve."""

from __future__ import annotations

import asyncio
import socket

from fastapi import FastAPI

from backend.serving.http_service import HttpService
from backend.serving.openai.app import build_app
from backend.serving.openai.context import ApiContext
from backend.serving.openai.door import Door
from backend.serving.openai.listener import listen
from backend.serving.operations import Operations
from backend.serving.server_options import ServerOptions


class OpenAiServer:
    """`start` and `stop` are called once each, on the event loop that serves.

    operations  shared with the other servers of this process; None: its own, with the default options"""

    def __init__(self, context: ApiContext, operations: Operations | None = None) -> None:
        self._operations = operations or Operations(ServerOptions(), context.engine)
        self._front_end = context.front_end
        self.app: FastAPI = build_app(context)
        self._door = Door(self.app, self._operations)
        self.app.state.operations, self.app.state.door = self._operations, self._door
        self._http = HttpService(self._door, self._operations.options)

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which port 0 leaves to the system. Raises ConfigError where it is taken."""
        listener = listen(host, port)
        bound_port = listener.getsockname()[1]
        await self.start_on(listener)
        return bound_port

    async def start_on(self, listener: socket.socket) -> None:
        """As `start`, on a socket that listens already."""
        self._operations.start()
        await asyncio.to_thread(self._front_end.grammars.start)
        await self._http.start(listener)

    async def stop(self, grace_s: float = 30.0) -> None:
        """Refuses new answers, lets the running ones finish for at most `grace_s`, then closes the port."""
        await self._door.in_flight.stop(grace_s)
        await self._http.stop()
        await self._operations.stop()
        await asyncio.to_thread(self._front_end.grammars.close)
