"""OpenAI's API as one of the service's servers. Used by backend/serve.py. Imports no torch."""

from __future__ import annotations

import asyncio

from backend.errors import MillraceError
from backend.serving.openai.context import ApiContext
from backend.serving.openai.listener import LoadingServer
from backend.serving.openai.server import OpenAiServer
from backend.serving.operations import Operations


class EmbeddedOpenAi:
    """A Server (service.py). loading: what holds the port until it starts."""

    def __init__(self, context: ApiContext, operations: Operations, loading: LoadingServer) -> None:
        self._loading = loading
        self._server = OpenAiServer(context, operations)

    async def start(self) -> None:
        await self._server.start_on(await self._loading.hand_over())

    async def ended(self) -> MillraceError:
        await asyncio.Event().wait()  # never: it lives in this process
        raise AssertionError

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
