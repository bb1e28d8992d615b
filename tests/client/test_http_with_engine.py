"""The client over HTTP against the real thing: the demo model behind our own server of OpenAI's API."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from client import AsyncChatClient, ChatClient, RequestRefusedError, SessionFullError
from tests.backend.serving.openai.conftest import serving

SESSION_LEN = 512


@pytest.fixture(scope="module")
def server():
    with serving(session_len=SESSION_LEN) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with ChatClient(server.url, timeout_s=60) as client:
        yield client


def wait_until_idle(server) -> None:
    deadline_s = time.monotonic() + 20
    while server.run(server.context.engine.stats()).num_running:
        assert time.monotonic() < deadline_s, "the engine goes on with an answer that was left"


def test_a_conversation_remembers_and_the_prefix_cache_saves_what_was_said(client):
    session = client.session()
    session.infer("My name is Ada.", temperature=0)
    session.infer("Tell me a story about a fox.", temperature=0)
    held = session.num_tokens
    answer = session.infer("What is my name?", temperature=0)
    assert "Ada" in answer.text and answer.finish_reason == "stop"
    assert answer.num_prompt_tokens > held > answer.num_cached_tokens > 0
    assert answer.num_session_tokens == answer.num_prompt_tokens + answer.num_completion_tokens


def test_a_stream_grows_and_says_what_the_whole_answer_says(client):
    parts = list(client.session().stream("What is seven plus twelve?", temperature=0))
    assert "".join(part.text for part in parts) == client.session().infer("What is seven plus twelve?",
                                                                         temperature=0).text
    assert len(parts) > 3 and parts[-1].num_completion_tokens >= len(parts) - 1


def test_every_sampling_option_is_understood(client):
    answer = client.session().infer(
        "Tell me a story about a fox.", max_new_tokens=9, min_new_tokens=2, temperature=0.7, top_k=5, top_p=0.9,
        min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, seed=3, stop=["never said"],
        ignore_eos=True, skip_special_tokens=False)
    assert (answer.finish_reason, answer.num_completion_tokens) == ("length", 9)


def test_cancel_stops_the_engine_and_the_conversation_goes_on(client, server):
    session, reason = client.session(), None
    session.infer("My name is Ada.", temperature=0)
    for part in session.stream("Count from 1 to 60.", temperature=0, ignore_eos=True):
        if part.num_completion_tokens == 3:
            threading.Thread(target=session.cancel).start()
        reason = part.finish_reason
    assert reason == "abort"
    wait_until_idle(server)
    assert "Ada" in session.infer("What is my name?", temperature=0).text


def test_full_and_refused_are_known_by_what_the_server_says(client):
    session = client.session()
    session.infer("Hello!", max_new_tokens=4)
    with pytest.raises(SessionFullError, match=str(SESSION_LEN)):
        session.infer("fox " * SESSION_LEN)
    with pytest.raises(RequestRefusedError, match="temperature"):
        session.infer("Hello!", temperature=9)
    assert session.infer("Hello!", max_new_tokens=4).finish_reason in ("stop", "length")
    assert len(session.history) == 2


def test_the_server_says_its_model_and_length(client):
    info = client.server_info()
    assert (info.model_name, info.session_len) == ("internlm2", SESSION_LEN) and client.is_ready()


def test_many_sessions_of_the_async_client_are_answered_at_once(server):
    async def talk() -> list[str]:
        async with AsyncChatClient(server.url) as client:
            async def one(name: str) -> str:
                session = client.session()
                await session.infer(f"My name is {name}.", temperature=0)
                return (await session.infer("What is my name?", temperature=0)).text

            return await asyncio.gather(*map(one, ("Ada", "Alice", "Tom", "Lucy")))

    answers = asyncio.run(talk())
    assert all(name in text for name, text in zip(("Ada", "Alice", "Tom", "Lucy"), answers, strict=True))
    wait_until_idle(server)
