"""The embedded server on the demo model under load and abuse: nothing is lost, nothing leaks, nobody is disturbed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

pytest.importorskip("zmq")
pytest.importorskip("tritonclient")

from backend.engine.async_engine import AsyncEngine
from backend.model_source import open_model
from backend.serving.kserve_grpc import GrpcServer
from backend.serving.model_repository import ModelRepository
from backend.serving.served_models import build_models
from backend.text.front_end import TextFrontEnd
from client import AsyncChatClient, ChatError

CHECKPOINT = Path(__file__).parents[3] / "demo" / "checkpoint"
TEMPLATE_MODELS = Path(__file__).parents[3] / "workspace_template" / "triton_models"
QUESTIONS = [f"Tell me a story about a {one} and a {other}." for one in ("fox", "cat", "owl", "bear")
             for other in ("rabbit", "mouse")]
T = TypeVar("T")


@asynccontextmanager
async def served(**options: object):
    """The engine in its process, the server in this one, and a client of it."""
    source = open_model(CHECKPOINT, "internlm2")
    config = source.engine.with_options({"session_len": 1024, "max_batch_size": 64, "dtype": "float32", "device": "cpu",
                                         "cache_max_entry_count": 1200, **options})
    async with AsyncEngine(source, config) as engine:
        repository = ModelRepository(build_models(TextFrontEnd(source), engine), TEMPLATE_MODELS)
        server = GrpcServer(repository)
        port = await server.start("127.0.0.1", 0)
        async with AsyncChatClient(f"127.0.0.1:{port}") as client:
            yield engine, client
        await server.stop(0)


def play(act: Callable[[AsyncEngine, AsyncChatClient], Awaitable[T]], **options: object) -> T:
    async def main() -> T:
        async with served(**options) as (engine, client):
            return await asyncio.wait_for(act(engine, client), 280)
    return asyncio.run(main())


async def until_idle(engine: AsyncEngine) -> None:
    while (stats := await engine.stats()).num_running + stats.num_waiting:
        await asyncio.sleep(0.02)


def test_64_streams_of_512_tokens_all_complete_and_equal_those_run_alone():
    greedy = {"temperature": 0, "max_new_tokens": 512, "ignore_eos": True}

    async def answer(client: AsyncChatClient, question: str) -> tuple[str, int]:
        session = client.session()
        text, tokens = "", 0
        async for part in session.stream(question, **greedy):
            text, tokens = text + part.text, part.num_completion_tokens
        await session.end()
        return text, tokens

    async def act(engine: AsyncEngine, client: AsyncChatClient) -> None:
        alone = {question: await answer(client, question) for question in QUESTIONS[:4]}
        assert {tokens for _, tokens in alone.values()} == {512}
        together = await asyncio.gather(*(answer(client, question) for question in QUESTIONS[:4] * 16))
        assert together == [alone[question] for question in QUESTIONS[:4] * 16]
        stats = await engine.stats()
        assert (stats.num_free_blocks, stats.num_sessions) == (stats.num_blocks, 0)

    play(act)


def test_a_client_that_disappears_frees_its_blocks():
    async def act(engine: AsyncEngine, client: AsyncChatClient) -> None:
        visitor = AsyncChatClient(client.address)
        parts = visitor.session().stream(QUESTIONS[0], max_new_tokens=900, ignore_eos=True)
        await anext(parts)
        held = await engine.stats()
        assert held.num_free_blocks < held.num_blocks and held.num_running == 1
        await visitor.close()  # the channel is gone in the middle of the answer
        await until_idle(engine)
        assert (await engine.stats()).num_running == 0

    play(act)


def test_1000_aborted_requests_leave_blocks_and_memory_where_they_were():
    source = random.Random(1)

    async def abandon(client: AsyncChatClient) -> None:
        session = client.session()
        async with aclosing(session.stream(source.choice(QUESTIONS), max_new_tokens=500, ignore_eos=True)) as parts:
            for _ in range(source.randrange(1, 4)):
                await anext(parts)
        await session.end()

    async def rounds(client: AsyncChatClient, count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(*(abandon(client) for _ in range(50)))

    async def act(engine: AsyncEngine, client: AsyncChatClient) -> None:
        await rounds(client, 200)  # what is allocated once
        await until_idle(engine)
        processes = [psutil.Process(), psutil.Process(engine.process.pid)]
        before = [process.memory_info().rss for process in processes]
        await rounds(client, 1000)
        await until_idle(engine)
        stats = await engine.stats()
        assert (stats.num_free_blocks, stats.num_sessions) == (stats.num_blocks, 0)
        for process, rss in zip(processes, before, strict=True):
            assert process.memory_info().rss < rss + 32 * 2**20

    play(act)


def test_a_full_queue_refuses_the_next_request_and_no_other_is_harmed():
    async def act(engine: AsyncEngine, client: AsyncChatClient) -> None:
        async def one() -> int:
            return (await client.session().infer(QUESTIONS[0], temperature=0, max_new_tokens=100)).num_completion_tokens

        results = await asyncio.gather(*(one() for _ in range(12)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exception)]
        assert refused and all("requests are waiting, as many as max_queued allows" in str(error) for error in refused)
        assert {result for result in results if isinstance(result, int)} == {100}

    play(act, max_batch_size=2, max_queued=3)


def test_wrong_requests_among_good_ones_are_answered_and_harm_none():
    async def act(engine: AsyncEngine, client: AsyncChatClient) -> None:
        async def wrong(options: dict[str, object]) -> str:
            with pytest.raises(ChatError) as error:
                await client.session().infer("Hello!", **options)
            return str(error.value)

        good = asyncio.gather(*(client.session().infer(question, temperature=0, max_new_tokens=60)
                                for question in QUESTIONS))
        lines = await asyncio.gather(*(wrong(options) for options in (
            {"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 5000}, {"repetition_penalty": 0.0}) * 5))
        assert all("out of range" in line or "exceed" in line for line in lines)
        assert {answer.num_completion_tokens for answer in await good} == {60}

    play(act)
