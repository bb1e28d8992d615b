"""Workspace model: what the `1/model.py` files of a workspace name as their model inside Triton Inference Server.

Thin: tokenizer and chat template are here, the engine is a process of its own. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from backend.engine.engine_client import EngineClient
from backend.serving.engine_address import engine_address
from backend.serving.served_model import ServedModel
from backend.serving.served_models import build_models
from backend.serving.tritonserver import TritonModel
from backend.text.front_end import TextFrontEnd
from backend.workspace import Workspace

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0  # how long to wait for the engine before saying so


class WorkspaceModel(TritonModel):
    """The model of the name in its config.pbtxt, of the workspace that its folder lies in."""

    @asynccontextmanager
    async def open_model(self, args: dict[str, str]) -> AsyncIterator[ServedModel]:
        """Waits for the engine; loading the model there may take minutes."""
        # The repository holds links to WORKSPACE/triton_models/FOLDER.
        workspace = Workspace(Path(args["model_repository"]).resolve().parents[1])
        address = engine_address()
        warning = asyncio.get_running_loop().call_later(
            PATIENCE_S, logger.warning, "%s waits for the engine at %s", args["model_name"], address)
        try:
            async with EngineClient(address) as engine:
                warning.cancel()
                yield build_models(TextFrontEnd(workspace), engine)[args["model_name"]]
        finally:
            warning.cancel()
