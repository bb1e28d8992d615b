"""The client against the real Triton Inference Server: the same cures, and an error never harms the server."""

from __future__ import annotations

import threading

import pytest

from client import (
    ChatClient,
    DeadlineError,
    ServerAwayError,
    ServerFailedError,
    SessionFullError,
    SessionLostError,
)
from tests.backend.serving.triton_harness import start_triton, write_repository
from tests.client.fake_server import MODELS

pytestmark = pytest.mark.real_triton


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    configs = {"chat": (MODELS / "chat" / "config.pbtxt").read_text()}
    repository = write_repository(tmp_path_factory.mktemp("models"), configs, "tests.client.fake_chat", "models")
    with start_triton(repository) as server:
        yield server.grpc_url


@pytest.fixture
def client(address):
    with ChatClient(address) as client:
        yield client


def test_turns_go_on_are_taken_back_and_end(client):
    session = client.session()
    assert client.is_ready()
    assert session.infer("one", system="Be brief.", stop=("x", "y"), seed=3).text == "I heard 1: one "
    assert session.infer("two").text == "I heard 2: two "
    assert "".join(part.text for part in session.retry()) == "I heard 2: two "
    session.end()
    assert session.infer("three").text == "I heard 1: three "


def test_cancel_keeps_the_partial_answer(client):
    session = client.session()
    for part in session.stream("forever"):
        if part.num_completion_tokens == 3:
            threading.Thread(target=session.cancel).start()
    assert part.finish_reason == "abort" and session.num_tokens == part.num_session_tokens
    assert session.infer("two").text == "I heard 2: two "


def test_errors_are_the_same_and_the_server_survives_each(address, client):
    session = client.session()
    session.infer("one")
    for question, error in (("word " * 100, SessionFullError), ("die", ServerAwayError), ("break", ServerFailedError)):
        with pytest.raises(error):
            session.infer(question)
        assert session.infer("two").text == "I heard 2: two "
        session.undo()
    other = client.session(session.id)
    other.infer("hi")
    other.end()
    with pytest.raises(SessionLostError, match="is not known"):
        session.infer("two")
    with ChatClient(address, timeout_s=0.5) as hasty, pytest.raises(DeadlineError):
        hasty.session().infer("forever")
    assert client.is_ready()
