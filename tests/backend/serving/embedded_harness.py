"""The embedded server for tests: stub models in, a running gRPC and HTTP server out, on an event loop of their own.

Used by the protocol tests, which a client's blocking calls would otherwise stop from being answered."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.serving.kserve_grpc import GrpcOptions, GrpcServer
from backend.serving.model_repository import ModelRepository
from backend.serving.served_model import ServedModel


@dataclass(slots=True)
class EmbeddedServer:
    """A server that answers; `run` executes a coroutine on its loop."""

    grpc: GrpcServer
    grpc_port: int
    loop: asyncio.AbstractEventLoop
    models: Mapping[str, ServedModel]
    is_ready: list[bool] = field(default_factory=lambda: [True])

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


def write_configs(folder: Path, configs: Mapping[str, str]) -> Path:
    """Folders with a config.pbtxt each."""
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


@contextlib.contextmanager
def start_embedded(folder: Path, models: Mapping[str, ServedModel],
                   options: GrpcOptions | None = None) -> Iterator[EmbeddedServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    is_ready = [True]
    repository = ModelRepository(models, folder, lambda: is_ready[0])

    async def make() -> GrpcServer:
        return GrpcServer(repository, options)

    server = run(make())
    try:
        yield EmbeddedServer(server, run(server.start("127.0.0.1", 0)), loop, models, is_ready)
    finally:
        run(server.stop(grace_s=0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
