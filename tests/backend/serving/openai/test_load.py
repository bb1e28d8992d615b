"""The HTTP server on the demo model under load and abuse: nothing is lost, nothing leaks, nobody is disturbed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.backend.serving.openai.conftest import Api, serving

PATH = "/v1/chat/completions"
QUESTIONS = [f"Tell me a story about a {one} and a {other}." for one in ("fox", "cat", "owl", "bear")
             for other in ("rabbit", "mouse")]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serving(cache_max_entry_count=1200) as running:
        yield running


def body(question: str, **fields: Any) -> dict[str, Any]:
    return {"model": "internlm2", "messages": [{"role": "user", "content": question}], "temperature": 0,
            "ignore_eos": True, "stream": True, **fields}


def text_of(stream: str) -> str:
    *events, done = [event.removeprefix("data: ") for event in stream.split("\n\n") if event]
    assert done == "[DONE]"
    return "".join(choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"])


def until_idle(api: Api) -> None:
    while (stats := api.run(api.context.engine.stats())).num_running + stats.num_waiting:
        time.sleep(0.02)


async def connect(api: Api, request: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own with a request on it."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read stays with the server
    place.setblocking(False)
    await asyncio.get_running_loop().sock_connect(place, ("127.0.0.1", api.port))
    reader, writer = await asyncio.open_connection(sock=place)
    content = json.dumps(request).encode()
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                 "Connection: close\r\n"
                 f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


def test_200_streams_at_once_are_all_complete_and_equal_those_run_alone(api):
    async def stream(client: httpx.AsyncClient, question: str) -> str:
        response = await client.post(PATH, json=body(question, max_tokens=16))
        assert response.status_code == 200, response.text
        return text_of(response.text)

    async def act() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=api.url, timeout=200, limits=limits) as client:
            alone = {question: await stream(client, question) for question in QUESTIONS}
            together = await asyncio.gather(*(stream(client, question) for question in QUESTIONS * 25))
        assert together == [alone[question] for question in QUESTIONS * 25]

    asyncio.run(act())
    assert len(api.context.engine._waiting) == 0


def test_1000_disconnects_in_mid_stream_leave_blocks_and_memory_where_they_were(api):
    source = random.Random(1)

    async def leave() -> None:
        """Some before the first event, some after a few; some politely, some by a reset."""
        reader, writer = await connect(api, body(source.choice(QUESTIONS), max_tokens=500))
        for _ in range(source.randrange(4)):
            await reader.readuntil(b"data: ")
        if source.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def rounds(count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(*(leave() for _ in range(50)))

    asyncio.run(rounds(200))  # what is allocated once
    until_idle(api)
    processes = [psutil.Process(), psutil.Process(api.context.engine.process.pid)]
    before = [process.memory_info().rss for process in processes]
    asyncio.run(rounds(1000))
    until_idle(api)
    stats = api.run(api.context.engine.stats())
    assert stats.num_free_blocks == stats.num_blocks and stats.num_sessions == 0
    assert len(api.context.engine._waiting) == 0
    for process, rss in zip(processes, before, strict=True):
        assert process.memory_info().rss < rss + 32 * 2**20


def test_slow_readers_and_half_closed_connections_do_not_disturb_others(api):
    many = {"max_tokens": 200, "logprobs": True, "top_logprobs": 20}  # far more than buffers take
    alone = text_of(api.client.post(PATH, json=body(QUESTIONS[0], max_tokens=40)).text)

    async def act() -> None:
        slow = [await connect(api, body(QUESTIONS[1], **many)) for _ in range(4)]
        half_closed = [await connect(api, body(QUESTIONS[2], **many)) for _ in range(4)]
        for reader, writer in half_closed:
            await reader.readuntil(b"data: ")
            writer.write_eof()
        silent = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(4)]  # never ask anything
        async with httpx.AsyncClient(base_url=api.url, timeout=200) as client:
            others = await asyncio.gather(*(client.post(PATH, json=body(QUESTIONS[0], max_tokens=40))
                                            for _ in range(8)))
        assert [text_of(response.text) for response in others] == [alone] * 8
        for reader, _ in slow:  # nothing of theirs was lost meanwhile
            assert b"data: [DONE]" in await reader.read()
        for _, writer in (*slow, *half_closed, *silent):
            writer.close()

    asyncio.run(act())
    until_idle(api)
    stats = api.run(api.context.engine.stats())
    assert stats.num_free_blocks == stats.num_blocks
