"""A fake server and a client of it."""

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
