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
