"""The asyncio twin: the same turns, and what is its own, tasks and loops."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from client import AsyncChatClient, DeadlineError, RequestRefusedError, ServerAwayError, SessionLostError


def with_client(address, act, **options):
    async def run():
        async with AsyncChatClient(address, **options) as client:
            return await act(client)

    return asyncio.run(run())


def test_turns_go_on_and_are_taken_back(server):
    async def act(client):
        session = client.session()
        await session.infer("one", system="Be brief.")
        second = await session.infer("two", temperature=0.0)
        retried = "".join([part.text async for part in session.retry()])
        await session.end()
        return second.text, retried, session.history

    assert with_client(server.address, act) == ("I heard 2: two ", "I heard 2: two ", [])
    assert server.chat.sessions == {}


def test_many_sessions_run_at_once_on_one_channel(server):
    async def act(client):
        async def talk(number):
            session = client.session()
            return [(await session.infer(f"{number}.{turn}")).text for turn in range(3)]

        return await asyncio.gather(*(talk(number) for number in range(64)))

    assert with_client(server.address, act) == [
        [f"I heard {turn + 1}: {number}.{turn} " for turn in range(3)] for number in range(64)]


def test_cancel_from_another_task_keeps_the_partial_answer(server):
    async def act(client):
        session = client.session()
        answer = asyncio.create_task(session.infer("forever"))
        while not server.chat.running:
            await asyncio.sleep(0)
        with pytest.raises(RequestRefusedError, match="is answering"):
            await session.infer("now")
        await session.cancel()
        return await answer, session.history[-1]

    answer, last = with_client(server.address, act)
    assert answer.finish_reason == "abort" and last == ("forever", answer.text)


def test_leaving_the_loop_stops_the_turn_on_the_server(server):
    async def act(client):
        session = client.session()
        async with aclosing(session.stream("forever")) as parts:
            async for _ in parts:
                break
        return session.history, session.num_tokens, session.id

    history, num_tokens, session_id = with_client(server.address, act)
    assert [question for question, _ in history] == ["forever"]
    assert server.chat.running == {} and len(server.chat.sessions[session_id]) == num_tokens


def test_a_cancelled_task_leaves_no_trace_in_the_session(server):
    async def act(client):
        session = client.session()
        await session.infer("one")
        answer = asyncio.create_task(session.infer("forever"))
        while not server.chat.running:
            await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        while server.chat.running:
            await asyncio.sleep(0)
        return (await session.infer("two")).text

    assert with_client(server.address, act) == "I heard 2: two "


def test_errors_and_cures_are_the_same(server):
    async def act(client):
        session = client.session()
        await session.infer("one")
        server.chat.sessions.clear()
        with pytest.raises(SessionLostError):
            await session.infer("two")
        session.resume()
        resumed = (await session.infer("two")).text
        with pytest.raises(DeadlineError):
            await session.infer("forever")
        return resumed

    assert with_client(server.address, act, timeout_s=1.0) == "I heard 2: two "


def test_a_template_that_rewrites_earlier_turns_is_told_all_of_them(server):
    async def act(client):
        session = client.session()
        return [(await session.infer(question)).text for question in ("one", "two", "three")]

    server.chat.rewrites_turns = True
    assert with_client(server.address, act)[-1] == "I heard 3: three "


def test_a_server_that_is_away_is_named(server):
    async def act(client):
        assert await client.is_ready()
        server.stop()
        assert not await client.is_ready()
        with pytest.raises(ServerAwayError, match="check the address"):
            await client.session().infer("hello")
        server.start()

    with_client(server.address, act)
