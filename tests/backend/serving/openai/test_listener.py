"""The listener: what reaches no application, and how the port changes hands once the model is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx
import pytest

pytest.importorskip("fastapi")

from starlette.responses import PlainTextResponse

from backend.errors import ConfigError
from backend.serving.http_service import HttpService
from backend.serving.openai.listener import LoadingServer, listen
from backend.serving.server_options import ServerOptions

OPTIONS = ServerOptions(max_header_bytes=4096)


def port_of(loading: LoadingServer) -> int:
    return loading._listener.getsockname()[1]


async def get(port: int) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{port}/health")


def test_while_the_model_loads_everything_is_503_and_afterwards_the_same_port_answers():
    async def run() -> None:
        loading = LoadingServer("127.0.0.1", 0, OPTIONS)
        await loading.start()
        port = port_of(loading)
        answer = await get(port)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert json.loads(answer.content)["error"]["code"] == "loading"
        listener = await loading.hand_over()
        waiting = asyncio.create_task(get(port))  # nobody answers now, but the connection is taken
        await asyncio.sleep(0.05)
        server = HttpService(PlainTextResponse("here"), OPTIONS)
        await server.start(listener)
        assert (await waiting).text == "here"
        await loading.stop()  # changes nothing any more
        assert (await get(port)).text == "here"
        await server.stop()

    asyncio.run(run())


def test_a_load_that_fails_frees_the_port():
    async def run() -> int:
        loading = LoadingServer("127.0.0.1", 0, OPTIONS)
        await loading.start()
        port = port_of(loading)
        await loading.stop()
        return port

    listen("127.0.0.1", asyncio.run(run())).close()


def test_a_port_in_use_names_the_option():
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="--server_port"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("beginning", [b"GET / HTTP/1.1\r\nhost: a\r\nx-long: ", b"GET /"])
def test_headers_without_an_end_are_refused_before_they_fill_the_memory(beginning):
    async def run() -> bytes:
        listener = listen("127.0.0.1", 0)
        server = HttpService(PlainTextResponse("here"), OPTIONS)
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(beginning)
        sent = 0
        try:
            while sent < 10_000_000:
                writer.write(b"x" * 1024)
                await writer.drain()
                sent += 1024
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        assert sent < 10_000_000
        answer = b""
        with contextlib.suppress(ConnectionError):  # the kernel may drop the answer with what was not read
            answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await server.stop()
        return answer

    answer = asyncio.run(run())
    assert not answer or answer.split(b"\r\n")[0].split()[1] in (b"431", b"400")


def test_headers_behind_a_body_are_no_headers_of_the_call_and_refused_when_they_do_not_end():
    async def run() -> tuple[list[bytes], int]:
        names: list[bytes] = []

        async def app(scope, receive, send) -> None:
            while (await receive()).get("more_body", False):
                pass
            names.extend(name for name, _ in scope["headers"])
            await PlainTextResponse("here")(scope, receive, send)

        listener = listen("127.0.0.1", 0)
        server = HttpService(app, OPTIONS)
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        begin = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        writer.write(begin + b"late: 1\r\n\r\n")
        await reader.readuntil(b"here")
        writer.write(begin)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 10_000_000:
                writer.write(b"late: 1\r\n" * 100)
                await writer.drain()
                sent += 900
                await asyncio.sleep(0)
        writer.close()
        await server.stop()
        return names, sent

    names, sent = asyncio.run(run())
    assert b"late" not in names
    assert sent < 10_000_000


WHOLE = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("first, beginning", [(b"", b""), (b"", WHOLE[:20]), (WHOLE, b"\r\n"), (WHOLE, WHOLE[:20])])
def test_a_connection_whose_headers_do_not_come_is_closed(first, beginning):
    async def run() -> bytes:
        listener = listen("127.0.0.1", 0)
        server = HttpService(PlainTextResponse("here"), ServerOptions(body_timeout_s=0.5))
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        if first:
            writer.write(first)
            await reader.readuntil(b"here")
        writer.write(beginning)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await server.stop()
        return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 408 ")


def test_bytes_ahead_of_the_next_call_do_not_end_a_long_answer_but_are_not_waited_for_afterwards():
    async def run() -> bytes:
        async def app(scope, receive, send) -> None:
            await asyncio.sleep(1.2)
            await PlainTextResponse("here")(scope, receive, send)

        listener = listen("127.0.0.1", 0)
        server = HttpService(app, ServerOptions(body_timeout_s=0.5))
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(WHOLE)
        await asyncio.sleep(0.05)
        writer.write(WHOLE[:20])
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await server.stop()
        return answer

    first, second = asyncio.run(run()).split(b"here")
    assert first.startswith(b"HTTP/1.1 200 ") and second.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_its_answer_unread_loses_its_connection():
    async def run() -> int:
        ended = asyncio.get_running_loop().create_future()

        async def app(scope, receive, send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            sent = 0
            while (await asyncio.wait({leaving := asyncio.ensure_future(receive())}, timeout=0))[1]:
                leaving.cancel()
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                sent += 1 << 16
            ended.set_result(sent)

        listener = listen("127.0.0.1", 0)
        server = HttpService(app, ServerOptions(reading_timeout_s=0.2))
        await server.start(listener)
        _, writer = await asyncio.open_connection(*listener.getsockname(), limit=1 << 12)
        writer.write(WHOLE)
        sent = await asyncio.wait_for(ended, 60)
        writer.close()
        await server.stop()
        return sent

    assert asyncio.run(run()) < 1 << 28


def test_a_client_that_reads_slowly_but_steadily_gets_all():
    size = 1 << 23

    async def run() -> int:
        listener = listen("127.0.0.1", 0)
        server = HttpService(PlainTextResponse(b"a" * size), ServerOptions(reading_timeout_s=0.3))
        await server.start(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=1 << 12)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        num_read = 0
        while part := await reader.read(1 << 18):
            num_read += len(part)
            if num_read < size // 2:  # far longer than the timeout in all
                await asyncio.sleep(0.05)
        writer.close()
        await server.stop()
        return num_read

    assert asyncio.run(run()) > size
