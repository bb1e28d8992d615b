"""The client against the real thing: the demo checkpoint behind `python -m backend.serve`, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client import ChatClient, SessionFullError, SessionLostError

ROOT = Path(__file__).parents[2]
SESSION_LEN = 512


@pytest.fixture(scope="module")
def client():
    ports = [str(port) for port in free_ports(2)]
    command = [sys.executable, "-m", "backend.serve", "demo/checkpoint", "internlm2", "--api", "kserve",
               "--host", "127.0.0.1", "--port", ports[0], "--http_port", ports[1],
               "--session_len", str(SESSION_LEN), "--max_batch_size", "4"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert "serving" in process.stdout.readline()
            with ChatClient(f"127.0.0.1:{ports[0]}", timeout_s=60) as client:
                yield client
        finally:
            process.terminate()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def test_a_session_remembers_and_computes_only_what_is_new(client):
    session = client.session()
    session.infer("My name is Ada.", temperature=0)
    held = session.num_tokens
    answer = session.infer("What is my name?", temperature=0)
    assert "Ada" in answer.text and answer.finish_reason == "stop"
    assert answer.num_cached_tokens >= held - 1
    session.end()


def test_a_turn_taken_back_is_as_if_it_had_not_been(client):
    session = client.session()
    session.infer("My name is Ada.", temperature=0)
    once = session.infer("What is my name?", temperature=0)
    session.undo()
    session.infer("Tell me a story about a fox.", temperature=0, max_new_tokens=20)
    session.undo()
    again = session.infer("What is my name?", temperature=0)
    assert (again.text, again.num_prompt_tokens, again.num_session_tokens) == (
        once.text, once.num_prompt_tokens, once.num_session_tokens)


def test_a_resumed_conversation_goes_on_as_the_first_one_would_have(client):
    first, second = client.session(), client.session()
    for session in (first, second):
        session.infer("My name is Ada.", temperature=0)
    first.resume()
    assert first.infer("What is my name?", temperature=0).text == second.infer("What is my name?", temperature=0).text


def test_cancel_stops_the_engine_and_the_session_goes_on(client):
    session = client.session()
    reason = None
    session.infer("My name is Ada.", temperature=0)
    for part in session.stream("Count from 1 to 60.", temperature=0, ignore_eos=True):
        if part.num_completion_tokens == 3:
            threading.Thread(target=session.cancel).start()
        reason = part.finish_reason
    assert reason == "abort" and session.num_tokens < SESSION_LEN - 1
    assert session.infer("What is my name?", temperature=0).finish_reason == "stop"


def test_leaving_the_loop_leaves_the_session_usable(client):
    session = client.session()
    for _ in session.stream("Tell me a story about a fox.", temperature=0, ignore_eos=True):
        break
    assert session.infer("What is seven plus twelve?", temperature=0).finish_reason == "stop"
    assert len(session.history) == 2


def test_full_and_lost_sessions_are_known_by_the_engines_own_words(client):
    session = client.session()
    session.infer("Hello!", max_new_tokens=4)
    with pytest.raises(SessionFullError, match=f"exceed session_len={SESSION_LEN}"):
        session.infer("fox " * SESSION_LEN)
    thief = client.session(session.id)
    thief.infer("Hi", max_new_tokens=1)
    with pytest.raises(SessionLostError, match="cannot be reached"):
        session.infer("Hello!")
    thief.end()
    with pytest.raises(SessionLostError, match="is not known"):
        session.infer("Hello!")
    session.resume()
    assert session.infer("Hello!", max_new_tokens=4).finish_reason in ("stop", "length")


def test_the_server_says_its_model_and_session_len(client):
    info = client.server_info()
    assert (info.model_name, info.session_len) == ("internlm2", SESSION_LEN)
