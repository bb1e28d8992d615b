"""Fake servers, and a client of the one that speaks gRPC."""

from __future__ import annotations

import pytest

from client import ChatClient
from tests.client.fake_server import FakeServer


@pytest.fixture
def server():
    server = FakeServer().start()
    yield server
    server.chat.gate.set()
    server.close()


@pytest.fixture
def client(server):
    with ChatClient(server.address) as client:
        yield client


@pytest.fixture
def fake_openai():
    from tests.client.fake_openai import FakeOpenAi  # needs aiohttp, which gRPC does without

    server = FakeOpenAi().start()
    yield server
    server.close()
