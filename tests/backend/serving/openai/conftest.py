"""The OpenAI server on the demo model: engine in its process, HTTP server on a loop of its own, clients over httpx.

`api` is one server for all tests of this folder; `serving` starts another, with options of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("zmq")

from backend.engine.async_engine import AsyncEngine
from backend.model_source import open_model
from backend.serving.openai.context import ApiContext
from backend.serving.openai.server import OpenAiServer
from backend.text.front_end import TextFrontEnd

CHECKPOINT = Path(__file__).parents[4] / "demo" / "checkpoint"
ANSWER_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Api:
    """A server that answers at `url`; `run` executes a coroutine on its loop."""

    server: OpenAiServer
    context: ApiContext
    port: int
    loop: asyncio.AbstractEventLoop
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def post(self, path: str, **document: Any) -> httpx.Response:
        """The answer to a JSON body of these fields; `model` is added where it is missing."""
        return self.client.post(path, json={"model": "internlm2", **document})

    def ask(self, path: str, **document: Any) -> dict[str, Any]:
        """The JSON of an answer that has to be 200."""
        response = self.post(path, **document)
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, **document: Any) -> list[dict[str, Any]]:
        """The events of a streamed answer, which has to end with [DONE]."""
        response = self.post(path, stream=True, **document)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Api]:
    """The demo model served; options are EngineConfig's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    source = open_model(CHECKPOINT, "internlm2")
    config = source.engine.with_options({"session_len": 1024, "max_batch_size": 64, "dtype": "float32", "device": "cpu",
                                         "cache_max_entry_count": 600, **options})

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def start() -> tuple[AsyncEngine, ApiContext, OpenAiServer, int]:
        engine = await AsyncEngine(source, config).__aenter__()
        context = ApiContext(TextFrontEnd(source), engine, ("internlm2", "demo"))
        server = OpenAiServer(context)
        return engine, context, server, await server.start("127.0.0.1", 0)

    async def stop() -> None:
        await server.stop(grace_s=0)
        await engine.__aexit__()

    engine, context, server, port = run(start())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_TIMEOUT_S) as client:
            yield Api(server, context, port, loop, client)
    finally:
        run(stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def api() -> Iterator[Api]:
    with serving() as running:
        yield running
