"""/v1/models: what is served here. Used by app.py."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from backend.serving.openai.context import ApiContext, Context

router = APIRouter()


class ModelCard(BaseModel):
    """max_model_len  the longest prompt + completion, tokens"""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


@router.get("/v1/models", response_model=ModelList)
async def list_models(context: Context) -> dict[str, Any]:
    """The names that `model` may have."""
    return {"object": "list", "data": [_card(context, name) for name in context.model_names]}


@router.get("/v1/models/{model:path}", response_model=ModelCard)
async def retrieve_model(model: str, context: Context) -> dict[str, Any]:
    """One model; 404 for a name that is not served."""
    context.check_model(model)
    return _card(context, model)


def _card(context: ApiContext, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": context.created_s, "owned_by": "millrace",
            "max_model_len": context.engine.session_len}
