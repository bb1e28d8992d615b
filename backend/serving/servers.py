"""Servers: several of them as one, on one engine: each protocol's, or tritonserver with one of ours beside it.

Used by backend/serve.py. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backend.errors import MillraceError
from backend.serving.service import Server


class Servers:
    """A Server (service.py). Started in their order; all end when one does."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers

    async def start(self) -> None:
        for server in self._servers:
            await server.start()

    async def ended(self) -> MillraceError:
        waiting = [asyncio.create_task(server.ended()) for server in self._servers]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in waiting:
                task.cancel()

    async def stop(self, grace_s: float) -> None:
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
