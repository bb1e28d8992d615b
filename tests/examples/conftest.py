"""The demo model behind OpenAI's API, for other people's clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.serving.openai.conftest import Api, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "internlm2"


@pytest.fixture(scope="session")
def server() -> Iterator[Api]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def base_url(server: Api) -> str:
    """What OpenAI's clients are given."""
    return f"{server.url}/v1"


@pytest.fixture(scope="session")
def tools(server: Api) -> None:
    """Asked for by tests that wait for the server to know tools; from then on they run."""
    _expect_supported(server, tools=[{"type": "function", "function": {"name": "add"}}])


@pytest.fixture(scope="session")
def json_schema(server: Api) -> None:
    """As `tools`, for structured output."""
    _expect_supported(server, response_format={"type": "json_object"})


def _expect_supported(server: Api, **fields: object) -> None:
    answer = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=1, **fields)
    if "is not supported yet" in answer.text:
        pytest.xfail(answer.json()["error"]["message"])
