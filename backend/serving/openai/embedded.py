"""OpenAI's API as one of the service's servers. Used by backend/serve.py. Imports no torch."""

from __future__ import annotations

import asyncio

from backend.engine.engine_client import EngineClient
from backend.errors import MillraceError
from backend.serving.address import Address
from backend.serving.openai.context import ApiContext
from backend.serving.openai.server import OpenAiServer
from backend.text.front_end import TextFrontEnd


class EmbeddedOpenAi:
    """A Server (service.py). model_names: what requests may call the model, and answers call it by the first."""

    def __init__(self, front_end: TextFrontEnd, engine: EngineClient, model_names: tuple[str, ...],
                 address: Address) -> None:
        self._address = address
        self._server = OpenAiServer(ApiContext(front_end, engine, model_names))

    async def start(self) -> None:
        await self._server.start(self._address.host, self._address.server_port)

    async def ended(self) -> MillraceError:
        await asyncio.Event().wait()  # never: it lives in this process
        raise AssertionError

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
