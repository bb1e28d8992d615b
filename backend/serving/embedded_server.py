"""Embedded server: Millrace's own server for the service: the served models over gRPC and HTTP, in this process.

Owns both ports. Used by backend/serve.py. Imports no torch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from backend.config import EngineConfig
from backend.errors import MillraceError
from backend.model_source import ModelSource
from backend.serving.address import Address
from backend.serving.kserve_grpc import GrpcServer
from backend.serving.kserve_http import HttpServer
from backend.serving.model_repository import ModelRepository
from backend.serving.operations import Operations
from backend.serving.served_models import build_models
from backend.text.front_end import TextFrontEnd
from protocol.models import TURBOMIND

if TYPE_CHECKING:
    from backend.engine.async_engine import AsyncEngine

# Beside this package, both in a checkout and where setup.py installs it.
TEMPLATE_MODELS = Path(__file__).resolve().parents[2] / "workspace_template" / "triton_models"


class EmbeddedServer:
    """A Server (service.py). A Hugging Face folder is served with the template's model configurations."""

    def __init__(self, source: ModelSource, config: EngineConfig, front_end: TextFrontEnd, engine: AsyncEngine,
                 address: Address, operations: Operations) -> None:
        own = source.path / "model_repository"
        models = build_models(front_end, engine)
        repository = ModelRepository(models, own if own.is_dir() else TEMPLATE_MODELS,
                                     lambda: engine.process.is_alive() and operations.watchdog.is_healthy)
        _describe(repository, source, config)
        self._address = address
        self._operations = operations
        self._grpc = GrpcServer(repository, operations.options)
        self._http = HttpServer(repository, operations.options, operations.scrape)

    async def start(self) -> None:
        self._operations.start()
        await self._grpc.start(self._address.host, self._address.port)
        await self._http.start(self._address.host, self._address.http_port)

    async def ended(self) -> MillraceError:
        await asyncio.Event().wait()  # never: it lives in this process
        raise AssertionError

    async def stop(self, grace_s: float) -> None:
        await asyncio.gather(self._grpc.stop(grace_s), self._http.stop(grace_s))
        await self._operations.stop()


def _describe(repository: ModelRepository, source: ModelSource, config: EngineConfig) -> None:
    """What clients ask turbomind's configuration for: which model it is, and how it runs now."""
    parameters = repository.find(TURBOMIND).spec.config.parameters
    for key, value in (("model_name", source.model.model_name), ("session_len", config.session_len),
                       ("tensor_para_size", config.tp)):
        parameters[key].string_value = str(value)
