"""FakeChat on the embedded server, in a thread of the test's process, so that a test can look at what arrived."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from backend.serving.kserve_grpc import GrpcServer
from backend.serving.model_repository import ModelRepository
from backend.serving.server_options import ServerOptions
from tests.client.fake_chat import SESSION_LEN, FakeChat

MODELS = Path(__file__).parents[2] / "workspace_template" / "triton_models"
MODEL_NAME = "internlm"
T = TypeVar("T")


class FakeServer:
    """The embedded server with a FakeChat; `port` is free again after stop(), and start() takes it anew."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.chat = FakeChat()
        self.port = 0
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> FakeServer:
        self._server = self._run(self._start)
        return self

    def stop(self) -> None:
        self._run(lambda: self._server.stop(0.0))

    def restart(self) -> None:
        """As after a crash: the sessions are gone."""
        self.stop()
        self.chat.sessions.clear()
        self.start()

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> GrpcServer:
        repository = ModelRepository({"chat": self.chat, "turbomind": self.chat}, MODELS)
        parameters = repository.find("turbomind").spec.config.parameters
        parameters["model_name"].string_value, parameters["session_len"].string_value = MODEL_NAME, str(SESSION_LEN)
        server = GrpcServer(repository, self._options)
        self.port = await server.start("127.0.0.1", self.port)
        return server

    def _run(self, coroutine: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await coroutine()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(20)
