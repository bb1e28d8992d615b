"""Tracing: the spans of a call, under the client's own."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from backend.errors import ConfigError
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, RequestTiming, SamplingParams
from backend.serving.metrics import Metrics
from backend.serving.request_record import RequestRecord, current_record
from backend.serving.tracing import Tracing, check_tracing, open_tracing

TRACE_ID, PARENT_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def spans_of(record: RequestRecord, status: int, traceparent: str | None = None) -> dict[str, object]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).record(record, "POST", "/v1/completions", status, traceparent)
    return {span.name: span for span in exporter.get_finished_spans()}


def record_of_a_run() -> RequestRecord:
    record = RequestRecord("call-1")
    token = current_record.set(record)
    observer = Metrics().observe(GenerateRequest("r", (1,), SamplingParams()))
    current_record.reset(token)
    observer.output(GenerateOutput("r", (5,), None, 7, 3, 1, timing=RequestTiming(0.25, 0.5, 0.0, 0)))
    observer.output(GenerateOutput("r", (6,), FinishReason.STOP, 7, 3, 2))
    observer.ended("stop")
    return record


def test_a_call_is_a_span_with_its_phases_inside_below_the_clients_span():
    spans = spans_of(record_of_a_run(), 200, f"00-{TRACE_ID:032x}-{PARENT_ID:016x}-01")
    assert set(spans) == {"POST /v1/completions", "queued", "prefill", "decode"}
    call = spans["POST /v1/completions"]
    assert (call.context.trace_id, call.parent.span_id) == (TRACE_ID, PARENT_ID)
    assert call.attributes["gen_ai.usage.input_tokens"] == 7
    assert call.attributes["gen_ai.usage.output_tokens"] == 2
    assert call.attributes["http.response.status_code"] == 200
    for name in ("queued", "prefill", "decode"):
        assert spans[name].parent.span_id == call.context.span_id
    assert spans["queued"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    assert abs((spans["prefill"].end_time - spans["prefill"].start_time) - 500_000_000) < 1_000


def test_a_failed_call_is_an_error_and_needs_no_run():
    spans = spans_of(RequestRecord("call-2"), 503)
    assert spans["POST /v1/completions"].status.status_code is StatusCode.ERROR


def test_without_a_collector_a_call_costs_no_span():
    open_tracing(None).record(record_of_a_run(), "POST", "/v1/completions", 200, None)


def test_a_collector_without_the_exporter_is_refused_and_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ConfigError, match="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"):
        check_tracing("http://localhost:4318/v1/traces")
