"""The client over HTTP, at a small server of OpenAI's API: what it sends, makes of each answer, and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time

import pytest

from client import (
    AsyncChatClient,
    ChatClient,
    DeadlineError,
    RequestRefusedError,
    ServerAwayError,
    ServerFailedError,
    ServerInfo,
    SessionFullError,
    Tls,
)
from tests.client.fake_openai import MODEL, SESSION_LEN, FakeOpenAi

WAIT_S = 10.0


@pytest.fixture
def client(fake_openai):
    with ChatClient(fake_openai.url) as client:
        yield client


def wait_until(is_so) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.005)


def test_each_turn_brings_the_whole_conversation(client, fake_openai):
    session = client.session()
    assert session.infer("one", system="Be brief.").text == "I heard 1: one "
    assert session.infer("two").text == "I heard 2: two "
    assert fake_openai.requests[-1]["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "I heard 1: one "}, {"role": "user", "content": "two"}]
    assert fake_openai.requests[-1]["model"] == MODEL
    session.end()
    assert session.infer("three").text == "I heard 1: three "


def test_the_counts_are_the_servers(client):
    answer = client.session().infer("four five six")
    assert (answer.finish_reason, answer.num_prompt_tokens, answer.num_cached_tokens, answer.num_completion_tokens,
            answer.num_session_tokens) == ("stop", 6, 3, 6, 12)


def test_an_answer_comes_in_parts(client):
    parts = list(client.session().stream("hello"))
    assert [part.text for part in parts] == ["I ", "heard ", "1: ", "hello ", ""]
    assert [part.num_completion_tokens for part in parts] == [1, 2, 3, 4, 4]
    assert [part.finish_reason for part in parts] == [None] * 4 + ["stop"]


def test_sampling_has_openais_names(client, fake_openai):
    client.session().infer("hello", max_new_tokens=7, min_new_tokens=2, temperature=0, top_k=3, stop=["x"], seed=5,
                           ignore_eos=True, bad_words=["y"], top_p=None)
    asked = {name: value for name, value in fake_openai.requests[-1].items() if name not in ("model", "messages")}
    assert asked == {"stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 7,
                     "min_tokens": 2, "temperature": 0, "top_k": 3, "stop": ["x"], "seed": 5, "ignore_eos": True,
                     "bad_words": ["y"]}


def test_undo_and_retry_work_on_what_this_client_holds(client, fake_openai):
    session = client.session()
    session.infer("one")
    session.infer("two")
    assert session.undo() == "two"
    assert "".join(part.text for part in session.retry()) == "I heard 1: one "
    assert [turn for turn, _ in session.history] == ["one"]


@pytest.mark.parametrize(("question", "error", "words"), [
    ("full", SessionFullError, "exceed session_len=100"),
    ("wrong", RequestRefusedError, "top_k=-1 is out of range"),
    ("busy", ServerAwayError, "the queue is full"),
    ("loading", ServerAwayError, "the model is loading"),
    ("slow", DeadlineError, "the deadline has passed"),
    ("break", ServerFailedError, "an error in the server"),
    ("fail", ServerFailedError, "rank 0 was killed"),
    ("die", ServerAwayError, "is not available"),
])
def test_what_goes_wrong_has_its_own_error_and_leaves_no_trace(fake_openai, question, error, words):
    with ChatClient(fake_openai.url) as client:
        session = client.session()
        session.infer("one")
        with pytest.raises(error, match=words):
            session.infer(question)
        assert session.infer("two").text == "I heard 2: two "

    async def asked() -> None:
        async with AsyncChatClient(fake_openai.url) as client:
            session = client.session()
            with pytest.raises(error, match=words):
                await session.infer(question)
            assert (await session.infer("two")).text == "I heard 1: two "

    asyncio.run(asked())


def test_a_server_that_is_away_is_said_and_found_again(fake_openai):
    with ChatClient(fake_openai.url) as client:
        session = client.session()
        session.infer("one")
        fake_openai.stop()
        assert not client.is_ready()
        with pytest.raises(ServerAwayError, match="is not available"):
            session.infer("two")
        fake_openai.start()
        assert client.is_ready()
        assert session.infer("two").text == "I heard 2: two "


def test_something_else_at_the_address_is_said():
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    with (ChatClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
          pytest.raises(ServerFailedError, match="does not speak HTTP")):
        client.server_info()
    thread.join()
    listener.close()


def test_cancel_from_another_thread_ends_the_answer_on_the_server_and_keeps_what_came(client, fake_openai):
    session, parts = client.session(), []
    for part in session.stream("forever"):
        parts.append(part)
        if len(parts) == 3:
            threading.Thread(target=session.cancel).start()
    assert parts[-1].finish_reason == "abort" and parts[-1].num_completion_tokens >= 3
    wait_until(lambda: fake_openai.num_running == 0)
    assert session.history[0][1].startswith("on on on ")
    assert session.infer("again").text == "I heard 2: again "


def test_cancel_before_the_first_word_ends_the_request(client, fake_openai):
    session = client.session()
    canceller = threading.Thread(target=lambda: (wait_until(lambda: fake_openai.num_running == 1), session.cancel()))
    canceller.start()
    assert [part.finish_reason for part in session.stream("late")] == ["abort"]
    canceller.join()
    wait_until(lambda: fake_openai.num_running == 0)


def test_sessions_of_one_id_do_not_meet(client):
    first, second = client.session(7), client.session(7)
    parts = first.stream("one two")
    next(parts)
    assert second.infer("three").text == "I heard 1: three "
    assert "".join(part.text for part in parts) == "heard 1: one two "


def test_leaving_the_loop_ends_the_answer_on_the_server(client, fake_openai):
    session = client.session()
    for _ in session.stream("forever"):
        break
    wait_until(lambda: fake_openai.num_running == 0)
    assert session.infer("again").text == "I heard 2: again "


def test_closing_the_client_ends_what_runs(fake_openai):
    client = ChatClient(fake_openai.url)
    parts = client.session().stream("forever")
    next(parts)
    client.close()
    assert [part.finish_reason for part in parts][-1] == "abort"
    wait_until(lambda: fake_openai.num_running == 0)


def test_the_async_client_cancels_before_and_after_the_first_word(fake_openai):
    async def talk() -> None:
        async with AsyncChatClient(fake_openai.url) as client:
            for question in ("forever", "late"):
                session, reasons = client.session(), []

                async def read(session=session, reasons=reasons, question=question) -> None:
                    async for part in session.stream(question):
                        reasons.append(part.finish_reason)

                reading = asyncio.create_task(read())
                while not (reasons if question == "forever" else fake_openai.num_running):
                    await asyncio.sleep(0.005)
                await session.cancel()
                await asyncio.wait_for(reading, WAIT_S)
                assert reasons[-1] == "abort"
                await asyncio.to_thread(wait_until, lambda: fake_openai.num_running == 0)
                assert (await session.infer("again")).text == "I heard 2: again "

    asyncio.run(talk())


def test_a_cancelled_task_is_cancelled_and_the_server_notices(fake_openai):
    async def talk() -> None:
        async with AsyncChatClient(fake_openai.url) as client:
            async def read() -> None:
                async with contextlib.aclosing(client.session().stream("forever")) as parts:
                    async for _ in parts:
                        pass

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await asyncio.to_thread(wait_until, lambda: fake_openai.num_running == 0)

    asyncio.run(talk())


def test_the_async_client_says_the_same_as_the_blocking_one(fake_openai):
    async def talk() -> tuple:
        async with AsyncChatClient(fake_openai.url) as client:
            session = client.session()
            answers = [await session.infer(question, system="Be brief.") for question in ("one", "two")]
            return answers, await client.server_info(), await client.is_ready(), client.address

    with ChatClient(fake_openai.url) as client:
        session = client.session()
        answers = [session.infer(question, system="Be brief.") for question in ("one", "two")]
        assert asyncio.run(talk()) == (answers, client.server_info(), client.is_ready(), client.address)


@pytest.mark.parametrize("question", ["late", "forever"])
def test_an_answer_that_takes_too_long_is_given_up(fake_openai, question):
    with ChatClient(fake_openai.url, timeout_s=0.2) as client, pytest.raises(DeadlineError, match="longer timeout_s"):
        client.session().infer(question)

    async def asked() -> None:
        async with AsyncChatClient(fake_openai.url, timeout_s=0.2) as client:
            with pytest.raises(DeadlineError, match="longer timeout_s"):
                await client.session().infer(question)

    asyncio.run(asked())
    wait_until(lambda: fake_openai.num_running == 0 or question == "late")


def test_the_server_says_its_model_and_its_length(fake_openai):
    for wanted in (None, MODEL, "another"):
        with ChatClient(fake_openai.url + "/v1/", model=wanted) as client:
            assert client.address == fake_openai.url
            assert client.server_info() == ServerInfo(None, MODEL, SESSION_LEN)


def test_the_api_key_is_sent_and_a_wrong_one_is_said():
    server = FakeOpenAi(api_key="secret").start()
    with ChatClient(server.url, "secret") as client:
        assert client.session().infer("hello").text == "I heard 1: hello "
    for key in (None, "wrong"):
        with ChatClient(server.url, key) as client, pytest.raises(RequestRefusedError, match="wants another api_key"):
            client.session().infer("hello")
    server.close()


@pytest.mark.parametrize(("address", "tls", "words"), [
    ("http://", None, "is no server's URL"),
    ("http://host:port", None, "is no URL"),
    ("http://host?x=1", None, "is no server's URL"),
    ("http://host", Tls(), "is not encrypted; use https://"),
    ("https://host", Tls(ca="missing.pem"), "cannot be read"),
])
def test_an_address_that_cannot_be_is_one_line(address, tls, words):
    with pytest.raises(RequestRefusedError, match=words):
        ChatClient(address, tls=tls)


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]], check=True,
                   capture_output=True)
    return files


def test_tls_trusts_the_authority_it_is_given_and_no_other(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = FakeOpenAi(tls=context).start()
    tls = Tls(ca=certificate[0])
    with ChatClient(server.url, tls=tls) as client:
        session = client.session()
        assert session.infer("hello").text == "I heard 1: hello "
        for part in session.stream("forever"):
            if part.num_completion_tokens == 3:
                threading.Thread(target=session.cancel).start()
        assert part.finish_reason == "abort"
    with ChatClient(server.url) as client, pytest.raises(RequestRefusedError, match="--tls_ca"):
        client.session().infer("hello")

    async def asked() -> str:
        async with AsyncChatClient(server.url) as client:
            with pytest.raises(RequestRefusedError, match="--tls_ca"):
                await client.session().infer("hello")
        async with AsyncChatClient(server.url, tls=tls) as client:
            return (await client.session().infer("hello")).text

    assert asyncio.run(asked()) == "I heard 1: hello "
    server.close()
