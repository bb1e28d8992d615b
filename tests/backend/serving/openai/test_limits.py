"""What ends or refuses a call on a real engine: deadlines, a full queue, a client that leaves; and what is measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.backend.serving.openai.conftest import Api, serving

LONG = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True}
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def small() -> Iterator[Api]:
    """A server of one row and one place in the queue."""
    with serving(max_batch_size=1, max_queued=1) as running:
        yield running


def is_idle(api: Api) -> bool:
    stats = api.run(api.context.engine.stats())
    return stats.num_running == stats.num_waiting == 0


def wait_until_idle(api: Api) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not is_idle(api):
        assert time.monotonic() < end_s, "the engine still works"
        time.sleep(0.02)


@pytest.mark.parametrize("as_header", [True, False])
def test_a_call_past_its_deadline_is_504_and_its_request_is_ended(small, as_header):
    document = {"model": "internlm2", **LONG, **({} if as_header else {"timeout": 0.2})}
    response = small.client.post("/v1/completions", json=document,
                                 headers={"X-Request-Timeout": "0.2"} if as_header else {})
    assert response.status_code == 504, response.text
    assert response.json()["error"]["code"] == "deadline_exceeded"
    wait_until_idle(small)


def test_a_stream_past_its_deadline_has_what_there_was_and_then_the_error(small):
    response = small.post("/v1/completions", stream=True, **LONG, timeout=1)
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.strip().split("\n\n")]
    assert response.status_code == 200 and len(events) > 1
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert all("choices" in event for event in events[:-1])
    wait_until_idle(small)


@pytest.mark.parametrize("value", [0, -1, "1", 1e9])
def test_a_deadline_that_is_none_is_400_and_names_its_field(small, value):
    response = small.post("/v1/completions", prompt="Once", timeout=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "timeout"


def test_when_the_queue_is_full_a_call_is_429_and_says_when_to_come_again(small):
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(small.post("/v1/completions", **LONG, timeout=5).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]  # one runs, one waits
    for number, thread in enumerate(threads):
        thread.start()
        end_s = time.monotonic() + TIMEOUT_S
        while sum(_load(small)) <= number or _load(small)[0] < 1:
            assert time.monotonic() < end_s
            time.sleep(0.005)
    response = small.post("/v1/completions", **LONG)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0
    for thread in threads:
        thread.join()
    assert all(status in (200, 504) for status in statuses)
    wait_until_idle(small)


@pytest.mark.parametrize("path, fields", [
    ("/v1/chat/completions", {"messages": "Once"}), ("/v1/completions", {"prompt": "Once"})])
def test_more_choices_than_can_ever_fit_are_400_and_as_many_as_fit_are_answered(small, path, fields):
    wait_until_idle(small)
    assert len(small.ask(path, **fields, n=2, max_tokens=2)["choices"]) == 2
    error = small.post(path, **fields, n=4, max_tokens=2).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "n") and "the 2 that" in error["message"]


def test_more_prompts_than_can_ever_fit_are_400_too(small):
    error = small.post("/v1/completions", prompt=["Once"] * 3).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "prompt") and "3 prompts" in error["message"]


def _load(api: Api) -> tuple[int, int]:
    stats = api.run(api.context.engine.stats())
    return stats.num_running, stats.num_waiting


def test_the_time_in_the_queue_is_in_the_timing_of_who_waited(small):
    first = threading.Thread(target=small.post, args=("/v1/completions",), kwargs={**LONG, "max_tokens": 300})
    first.start()
    end_s = time.monotonic() + TIMEOUT_S
    while _load(small)[0] < 1:
        assert time.monotonic() < end_s
        time.sleep(0.002)
    response = small.client.post("/v1/completions", json={"model": "internlm2", "prompt": "Once", "max_tokens": 4},
                                 headers={"X-Millrace-Timing": "1"})
    first.join()
    phases = dict(part.split("=") for part in response.headers["x-millrace-timing"].split(", "))
    assert float(phases["queued"]) > 0
    assert float(phases["prefill"]) > 0


def test_a_client_that_leaves_is_an_abort_in_the_metrics(small):
    before = _metric(small, 'millrace_requests_total{outcome="abort"}')
    with small.client.stream("POST", "/v1/completions", json={"model": "internlm2", **LONG, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_until_idle(small)
    assert _metric(small, 'millrace_requests_total{outcome="abort"}') == before + 1


def test_a_stop_text_is_no_abort(small):
    before = _metric(small, "millrace_aborts_total"), _metric(small, 'millrace_requests_total{outcome="stop"}')
    answer = small.ask("/v1/completions", **{**LONG, "stop": [" "]})
    assert answer["choices"][0]["finish_reason"] == "stop"
    wait_until_idle(small)
    after = _metric(small, "millrace_aborts_total"), _metric(small, 'millrace_requests_total{outcome="stop"}')
    assert after == (before[0], before[1] + 1)


def _metric(api: Api, name: str) -> float:
    for line in api.client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0
