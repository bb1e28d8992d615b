"""Context: what every endpoint works with. Made once by whoever serves, handed to endpoints by FastAPI.

Used by every router of this folder; a handler takes it as an argument of type `Context`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from backend.engine.engine_client import EngineClient
from backend.serving.openai.errors import ApiError
from backend.serving.openai.response_store import ResponseStore
from backend.text.front_end import TextFrontEnd


@dataclass(frozen=True, slots=True)
class ApiContext:
    """model_names  what requests may call the model; the first is what answers call it
    created_s    Unix time at which the model was loaded
    responses    answers that later requests may go on from"""

    front_end: TextFrontEnd
    engine: EngineClient
    model_names: tuple[str, ...]
    created_s: int = field(default_factory=lambda: int(time.time()))
    responses: ResponseStore = field(default_factory=ResponseStore)

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that is not served here."""
        if name not in self.model_names:
            names = " or ".join(map(repr, self.model_names))
            raise ApiError(404, f"the model {name!r} is not served here; use {names}",
                           code="model_not_found", param="model")


async def _context(request: Request) -> ApiContext:
    return request.app.state.context


Context = Annotated[ApiContext, Depends(_context)]
