"""The guard, alone: what it takes in before it knows who calls."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("fastapi")

from starlette.responses import PlainTextResponse

from backend.serving.api_keys import ApiKeys
from backend.serving.openai.guard import Guard
from backend.serving.server_options import ServerOptions


@pytest.mark.parametrize("path, status", [("/health", 200), ("/v1/models", 401)])
def test_without_a_key_no_body_is_taken_in(path, status):
    sent: list[dict] = []

    async def receive() -> dict:
        raise AssertionError("the body is read")

    async def send(message: dict) -> None:
        sent.append(message)

    guard = Guard(PlainTextResponse("here"), ServerOptions(api_keys=ApiKeys.of(["first"])))
    asyncio.run(guard({"type": "http", "path": path, "headers": []}, receive, send))
    assert sent[0]["status"] == status
