"""The door: what each call passes before it reaches an endpoint. Small applications instead of a model."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from fastapi import FastAPI, Request, Response
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import StreamingResponse

from backend.requests import EngineStats, FinishReason, GenerateOutput, GenerateRequest, RequestTiming, SamplingParams
from backend.serving.api_keys import ApiKeys
from backend.serving.openai import health
from backend.serving.openai.door import Door
from backend.serving.openai.errors import JSON_LINES, add_error_handlers
from backend.serving.openai.in_flight import limit_time
from backend.serving.operations import Operations
from backend.serving.server_options import CrossOrigin, ServerOptions

IDLE = EngineStats(10, 10, 0, 0, 0, 0, 0, 0, 0)
KEYS = ServerOptions(api_keys=ApiKeys.of(["first", "second"]))


class FakeEngine:
    """`generate` in two outputs, told to the observer as EngineClient does."""

    observe: Any = None

    async def stats(self) -> EngineStats:
        return IDLE

    def run(self) -> None:
        observer = self.observe(GenerateRequest("r", (1,), SamplingParams()))
        observer.output(GenerateOutput("r", (5,), None, 7, 3, 1, timing=RequestTiming(0.25, 0.5, 0.125, 1)))
        observer.output(GenerateOutput("r", (6,), FinishReason.STOP, 7, 3, 2))
        observer.ended("stop")


class Served:
    """A door before an application with a few routes."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.engine = FakeEngine()
        self.operations = Operations(options or ServerOptions(), self.engine)
        self.is_cancelled = False
        app = FastAPI()
        add_error_handlers(app)
        app.include_router(health.router)
        app.post("/echo")(self._echo)
        app.post("/endless")(self._endless)
        app.get("/stream")(self._stream)
        app.get("/stream_without_done")(self._stream_without_done)
        app.get("/lines")(self._lines)
        app.get("/endless_stream")(self._endless_stream)
        app.get("/endless_lines")(self._endless_lines)
        self.door = Door(app, self.operations)
        app.state.operations, app.state.door = self.operations, self.door
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.door), base_url="http://test")

    async def _echo(self, request: Request) -> Response:
        self.engine.run()
        return Response(await request.body())

    async def _endless(self, request: Request) -> Response:
        document = json.loads(await request.body() or "{}")
        limit_time(document.get("timeout"))
        try:
            await asyncio.Event().wait()
        finally:
            self.is_cancelled = True

    async def _stream(self) -> Response:
        async def events():
            self.engine.run()
            yield b'data: {"a":1}\n\n'
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _stream_without_done(self) -> Response:
        async def events():
            self.engine.run()
            yield b'event: a\ndata: {"a":1}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _lines(self) -> Response:
        async def lines():
            yield b'{"a":1}\n'

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def _endless_stream(self) -> Response:
        async def events():
            yield b'data: {"a":1}\n\n'
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _endless_lines(self, request: Request) -> Response:
        async def lines():
            yield b'{"a":1}\n'
            await asyncio.Event().wait()

        request.scope[JSON_LINES] = True
        return StreamingResponse(lines(), media_type="text/event-stream")


def call(ask: Callable[[Served], Awaitable[httpx.Response]], options: ServerOptions | None = None) -> httpx.Response:
    async def run() -> httpx.Response:
        return await ask(Served(options))

    return asyncio.run(run())


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("key", ["first", "second"])
def test_each_key_opens_the_door(key):
    response = call(lambda served: served.client.post("/echo", headers={"Authorization": f"Bearer {key}"}), KEYS)
    assert response.status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/echo"), ("GET", "/metrics"), ("GET", "/openapi.json"),
                                              ("GET", "/nothing"), ("GET", "/health/"), ("GET", "//health")])
def test_without_a_key_everything_but_health_is_401(method, path):
    response = call(lambda served: served.client.request(method, path, headers={"Authorization": "Bearer third"}), KEYS)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


def test_health_needs_no_key():
    assert call(lambda served: served.client.get("/health"), KEYS).status_code == 200


def test_a_body_that_says_it_is_too_long_is_413_before_it_is_read():
    response = call(lambda served: served.client.post("/echo", content=b"x" * 101),
                    ServerOptions(max_body_bytes=100))
    assert response.status_code == 413
    assert "100 bytes" in error_of(response)["message"]


def test_a_body_that_turns_out_too_long_is_413():
    async def chunks():
        for _ in range(11):
            yield b"x" * 10

    response = call(lambda served: served.client.post("/echo", content=chunks()), ServerOptions(max_body_bytes=100))
    assert response.status_code == 413


def test_a_body_in_pieces_arrives_whole():
    async def chunks():
        for number in range(10):
            yield b"%d" % number

    assert call(lambda served: served.client.post("/echo", content=chunks())).content == b"0123456789"


def test_a_body_that_does_not_come_is_408():
    async def chunks():
        yield b"x"
        await asyncio.Event().wait()

    response = call(lambda served: served.client.post("/echo", content=chunks()), ServerOptions(body_timeout_s=0.05))
    assert response.status_code == 408
    assert error_of(response)["code"] == "body_timeout"


def test_large_headers_are_431():
    response = call(lambda served: served.client.get("/health", headers={"X-Long": "x" * 1000}),
                    ServerOptions(max_header_bytes=1000))
    assert response.status_code == 431


@pytest.mark.parametrize("asked", [{"headers": {"X-Request-Timeout": "0.05"}}, {"json": {"timeout": 0.05}},
                                   {"headers": {"X-Request-Timeout": "60"}, "json": {"timeout": 0.05}},
                                   {"headers": {"X-Request-Timeout": "0.05"}, "json": {"timeout": 60}}])
def test_a_call_past_its_deadline_is_504_and_its_endpoint_is_ended(asked):
    async def run() -> None:
        served = Served()
        response = await served.client.post("/endless", **asked)
        assert response.status_code == 504
        assert "0.05 s" in error_of(response)["message"]
        assert served.is_cancelled

    asyncio.run(run())


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_deadline_that_is_no_number_of_seconds_is_400(value):
    response = call(lambda served: served.client.post("/endless", headers={"X-Request-Timeout": value}))
    assert response.status_code == 400
    assert error_of(response)["param"] == "timeout"


def test_a_stream_past_its_deadline_ends_with_the_error_as_its_last_event():
    response = call(lambda served: served.client.get("/endless_stream", headers={"X-Request-Timeout": "0.5"}))
    first, last = response.text.strip().split("\n\n")
    assert first == 'data: {"a":1}'
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_a_stream_of_lines_past_its_deadline_ends_with_the_error_as_its_last_line():
    response = call(lambda served: served.client.get("/endless_lines", headers={"X-Request-Timeout": "0.5"}))
    first, last = map(json.loads, response.text.splitlines())
    assert first == {"a": 1} and last["error"]["code"] == "deadline_exceeded"


def test_a_stopping_server_refuses_new_calls_and_lets_running_ones_end():
    async def run() -> None:
        served = Served()
        running = asyncio.create_task(served.client.post("/endless", json={"timeout": 0.3}))
        while not served.door.in_flight._running:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(served.door.in_flight.stop(grace_s=30))
        await asyncio.sleep(0)
        refused, unhealthy = await served.client.post("/echo"), await served.client.get("/health")
        assert (refused.status_code, unhealthy.status_code) == (503, 503)
        assert refused.headers["retry-after"] and unhealthy.headers["retry-after"]
        assert error_of(refused)["code"] == "stopping"
        assert (await running).status_code == 504  # its own deadline, not the stop, ended it
        await stopping

    asyncio.run(run())


def test_what_outlasts_the_grace_of_a_stop_is_told_so():
    async def run() -> None:
        served = Served()
        running = asyncio.create_task(served.client.post("/endless"))
        while not served.door.in_flight._running:
            await asyncio.sleep(0.01)
        await served.door.in_flight.stop(grace_s=0.05)
        response = await running
        assert response.status_code == 503
        assert error_of(response)["code"] == "stopping"

    asyncio.run(run())


def test_a_stuck_engine_makes_health_503_with_the_fault():
    async def run() -> None:
        served = Served()
        served.operations.watchdog.fault = "the engine answered nothing for 60 s"
        response = await served.client.get("/health")
        assert response.status_code == 503
        assert "answered nothing" in error_of(response)["message"]

    asyncio.run(run())


def test_the_clients_request_id_comes_back_and_a_bad_one_is_replaced():
    given = call(lambda served: served.client.post("/echo", headers={"X-Request-Id": "mine-1"}))
    made = call(lambda served: served.client.post("/echo", headers={"X-Request-Id": "x" * 200}))
    assert given.headers["x-request-id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])


def test_timing_is_a_header_for_who_asks():
    asked = call(lambda served: served.client.post("/echo", headers={"X-Millrace-Timing": "1"}))
    assert re.fullmatch(r"queued=0\.2500, prefill=0\.5000, decode=\d\.\d{4}, preempted=0\.1250",
                        asked.headers["x-millrace-timing"])
    assert "x-millrace-timing" not in call(lambda served: served.client.post("/echo")).headers


def test_timing_of_a_stream_is_a_comment_before_its_end():
    asked = call(lambda served: served.client.get("/stream", headers={"X-Millrace-Timing": "1"}))
    first, comment, last = asked.text.strip().split("\n\n")
    assert (first, last) == ('data: {"a":1}', "data: [DONE]")
    assert comment.startswith(": x-millrace-timing: queued=0.2500")
    assert "timing" not in call(lambda served: served.client.get("/stream")).text


def test_timing_of_a_stream_that_ends_without_a_mark_comes_last_and_lines_that_know_no_comments_have_none():
    asking = {"X-Millrace-Timing": "1"}
    stream = call(lambda served: served.client.get("/stream_without_done", headers=asking)).text
    first, comment = stream.strip().split("\n\n")
    assert first == 'event: a\ndata: {"a":1}'
    assert comment.startswith(": x-millrace-timing: queued=0.2500")
    assert call(lambda served: served.client.get("/lines", headers=asking)).text == '{"a":1}\n'


def test_answers_are_counted_by_route_whatever_paths_are_asked_for():
    async def run() -> dict[tuple[str, str], float]:
        served = Served()
        await served.client.post("/echo")
        await served.client.get("/one")
        await served.client.get("/two")
        text = (await served.client.get("/metrics")).text
        return {(sample.labels["route"], sample.labels["status"]): sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples
                if sample.name == "millrace_http_responses_total"}

    assert asyncio.run(run()) == {("/echo", "200"): 1.0, ("other", "404"): 2.0}


def test_cross_origin_answers_are_only_for_who_is_allowed():
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    closed = call(lambda served: served.client.options("/echo", headers=asking))
    assert "access-control-allow-origin" not in closed.headers
    options = ServerOptions(cross_origin=CrossOrigin(("https://page.example",)), api_keys=KEYS.api_keys)
    opened = call(lambda served: served.client.options("/echo", headers=asking), options)
    assert opened.headers["access-control-allow-origin"] == "https://page.example"
    other = call(lambda served: served.client.options("/echo", headers={**asking, "Origin": "https://other"}), options)
    assert other.status_code == 400


def test_a_logged_call_says_what_it_used_and_under_which_id(caplog):
    with caplog.at_level(logging.INFO, "backend.serving.request_log"):
        call(lambda served: served.client.post("/echo", headers={"X-Request-Id": "mine-1"}),
             ServerOptions(logs_requests=True))
    (line,) = [record for record in caplog.records if record.name == "backend.serving.request_log"]
    assert line.message.startswith("mine-1 POST /echo: 200 in ")
    assert line.fields["request_id"] == "mine-1"
    assert (line.fields["prompt_tokens"], line.fields["cached_tokens"], line.fields["completion_tokens"]) == (7, 3, 2)
    assert (line.fields["queued_s"], line.fields["preemptions"], line.fields["outcomes"]) == (0.25, 1, ["stop"])


def test_calls_are_not_logged_unasked(caplog):
    with caplog.at_level(logging.INFO, "backend"):
        call(lambda served: served.client.post("/echo"))
    assert not [record for record in caplog.records if record.name.startswith("backend")]
