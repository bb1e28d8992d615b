"""Application: all routes of the HTTP server on port 23333. Used by server.py, and by tests with their own server."""

from __future__ import annotations

from fastapi import FastAPI

from backend.serving.openai import (
    abort,
    chat,
    completions,
    docs_page,
    generate_tokens,
    health,
    interactive,
    models,
    responses,
    tokens,
)
from backend.serving.openai.context import ApiContext
from backend.serving.openai.errors import ERROR_RESPONSES, add_error_handlers

ROUTERS = tuple(module.router for module in (chat, completions, responses, interactive, generate_tokens, tokens, models,
                                             abort, health, docs_page))


def build_app(context: ApiContext) -> FastAPI:
    """The ASGI application. /openapi.json describes it; every error has the shape of errors.py."""
    app = FastAPI(title="Millrace", description="OpenAI's API for one model.", version="1", docs_url=None,
                  redoc_url=None, redirect_slashes=False)  # a redirect's body would have no error's shape
    app.state.context = context
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router, responses=ERROR_RESPONSES)
    return app
