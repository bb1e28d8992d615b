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

from backend.serving.kserve_grpc import GrpcServer
from backend.serving.kserve_http import HttpServer
from backend.serving.model_repository import ModelRepository
from backend.serving.served_model import ServedModel
from backend.serving.server_options import ServerOptions


@dataclass(slots=True)
class EmbeddedServer:
    """A server that answers; `run` executes a coroutine on its loop."""

    grpc: GrpcServer
    http: HttpServer
    grpc_port: int
    http_port: int
    loop: asyncio.AbstractEventLoop
    models: Mapping[str, ServedModel]
    is_ready: list[bool] = field(default_factory=lambda: [True])

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.http_port}"

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
                   options: ServerOptions | None = None) -> Iterator[EmbeddedServer]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    is_ready = [True]
    repository = ModelRepository(models, folder, lambda: is_ready[0])

    async def start() -> EmbeddedServer:
        grpc, http = GrpcServer(repository, options), HttpServer(repository, options)
        return EmbeddedServer(grpc, http, await grpc.start("127.0.0.1", 0), await http.start("127.0.0.1", 0), loop,
                              models, is_ready)

    server = run(start())
    try:
        yield server
    finally:
        run(server.grpc.stop(grace_s=0))
        run(server.http.stop(grace_s=0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
