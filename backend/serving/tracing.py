"""Tracing: a span for each call, with its phases inside, where OpenTelemetry is installed.

Where a program has set OpenTelemetry up (`opentelemetry-instrument python -m backend.serve …`), spans go where it says;
--otlp_endpoint sends them to a collector. A client's `traceparent` is the parent. Used by openai/recorder.py."""

from __future__ import annotations

import importlib
import time
from typing import Any

from backend.errors import ConfigError
from backend.serving.request_record import RequestRecord

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    trace = None  # type: ignore[assignment]


class Tracing:
    """provider  an OpenTelemetry TracerProvider; None: the process's own"""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("millrace", tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Sends what has not been sent yet."""
        if self._provider is not None:
            self._provider.shutdown()

    def record(self, record: RequestRecord, method: str, route: str, status: int, traceparent: str | None) -> None:
        """The span of a call that has just ended, and one for each phase of each of its runs on the engine."""
        now_s, now_ns = time.perf_counter(), time.time_ns()

        def wall_ns(clock_s: float) -> int:
            return now_ns - round((now_s - clock_s) * 1e9)

        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            f"{method} {route}", parent, trace.SpanKind.SERVER, start_time=wall_ns(record.began_s),
            attributes={"http.request.method": method, "http.route": route, "http.response.status_code": status,
                        "millrace.request_id": record.request_id})
        if not span.is_recording():
            span.end()
            return
        inside = trace.set_span_in_context(span, parent)
        for run in record.runs:
            for name, begin_s, end_s in run.phases():
                self._tracer.start_span(name, inside, start_time=wall_ns(begin_s)).end(wall_ns(end_s))
        span.set_attributes({
            "gen_ai.usage.input_tokens": sum(run.num_prompt_tokens for run in record.runs),
            "gen_ai.usage.output_tokens": sum(run.num_completion_tokens for run in record.runs),
            "gen_ai.response.finish_reasons": [run.outcome for run in record.runs]})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(now_ns)


def check_tracing(endpoint: str | None) -> None:
    """Raises ConfigError where a collector is named and what sends to it is not installed."""
    if endpoint is None:
        return
    try:
        for module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"--otlp_endpoint needs OpenTelemetry, of which {error.name} is missing; pip install "
                          "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http") from None


def open_tracing(endpoint: str | None) -> Tracing | None:
    """None where OpenTelemetry is not installed and nobody asked for it.

    endpoint  of a collector that speaks OTLP over HTTP, such as http://localhost:4318/v1/traces
    Raises ConfigError where it was asked for and is not installed."""
    check_tracing(endpoint)
    if endpoint is None:
        return None if trace is None else Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "millrace"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return Tracing(provider)
