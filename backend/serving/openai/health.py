"""/health and /metrics: for probes and for Prometheus. Used by app.py."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from backend.serving.metrics import CONTENT_TYPE
from backend.serving.openai.errors import ApiError
from backend.serving.operations import Operations

router = APIRouter()

RETRY_AFTER = {"Retry-After": "5"}


@router.get("/health", response_class=Response)
async def health(request: Request) -> Response:
    """200 where the engine stepped lately or has nothing to do; else, and while the server is being stopped, 503."""
    operations: Operations = request.app.state.operations
    if request.app.state.door.in_flight.is_stopping:
        raise ApiError(503, "the server is being stopped", "server_error", "stopping", headers=RETRY_AFTER)
    if operations.watchdog.fault is not None:
        raise ApiError(503, operations.watchdog.fault, "server_error", "engine_unavailable", headers=RETRY_AFTER)
    return Response()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(await request.app.state.operations.scrape(), media_type=CONTENT_TYPE)
