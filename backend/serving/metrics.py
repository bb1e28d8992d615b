"""Metrics: what a Prometheus server scrapes at /metrics.

What requests go through is measured in the front end, as its clients see it; the engine's own books are asked for at
each scrape. Every metric's name begins with millrace_; docs/operations.md lists them, docker/grafana.json shows them.
Used by the servers of backend.serve. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from backend.requests import EngineStats, GenerateOutput, GenerateRequest
from backend.serving.request_record import EngineRun, current_record

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # a second series for each metric, of which nobody asks

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_TOKENS = tuple(4**power for power in range(1, 11))

# EngineStats' field → (metric, its help). Gauges first, then what only grows.
_GAUGES = {
    "num_running": ("millrace_requests_running", "Requests that hold a row of the batch."),
    "num_waiting": ("millrace_requests_waiting", "Requests in the engine's queue."),
    "num_sessions": ("millrace_sessions", "Conversations that the engine remembers."),
    "num_blocks": ("millrace_kv_blocks", "Blocks of the KV cache."),
    "num_free_blocks": ("millrace_kv_blocks_free", "Blocks that nobody holds; what they cache can still be shared."),
}
_COUNTERS = {
    "num_preemptions": ("millrace_preemptions", "Times that a running request gave way, the KV cache being full."),
    "num_aborts": ("millrace_aborts", "Requests that ended because their caller cancelled or left."),
    "num_steps": ("millrace_steps", "Steps that the engine launched."),
}


class Metrics:
    """The metrics of one front end. `observe` is what an EngineClient's `observe` takes.

    Where PROMETHEUS_MULTIPROC_DIR is set, all processes with the same folder count as one (openai/workers.py)."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._books = _EngineBooks()
        registry = self._registry
        self.time_to_first_token = Histogram(
            "millrace_time_to_first_token_seconds", "From a request's arrival at the front end to its first token.",
            buckets=_SECONDS, registry=registry)
        self.inter_token = Histogram("millrace_inter_token_seconds", "Between two tokens of one request.",
                                     buckets=_TOKEN_SECONDS, registry=registry)
        self.request = Histogram("millrace_request_seconds", "From a request's arrival to its end.",
                                 buckets=_SECONDS, registry=registry)
        self.queue = Histogram("millrace_queue_seconds", "From a request's arrival in the engine to its first step.",
                               buckets=_SECONDS, registry=registry)
        self.prefill = Histogram("millrace_prefill_seconds", "From a request's first step to its first token.",
                                 buckets=_SECONDS, registry=registry)
        self.request_prompt_tokens = Histogram("millrace_request_prompt_tokens", "Prompt tokens of a request.",
                                               buckets=_TOKENS, registry=registry)
        self.request_completion_tokens = Histogram("millrace_request_completion_tokens", "Tokens that a request got.",
                                                   buckets=_TOKENS, registry=registry)
        self.prompt_tokens = Counter("millrace_prompt_tokens", "Prompt tokens, sessions' histories included.",
                                     registry=registry)
        self.cached_tokens = Counter("millrace_prompt_tokens_cached", "Prompt tokens that needed no computing.",
                                     registry=registry)
        self.completion_tokens = Counter("millrace_completion_tokens", "Generated tokens.", registry=registry)
        self.requests = Counter("millrace_requests", "Requests by how they ended.", ["outcome"], registry=registry)
        self.http_responses = Counter("millrace_http_responses", "Answers over HTTP.", ["route", "status"],
                                      registry=registry)
        self._shown = registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)
        else:
            ProcessCollector(registry=registry)
        self._shown.register(self._books)

    def observe(self, request: GenerateRequest) -> _ObservedRun:
        """Measures one request on the engine, and enters it into the record of the call that it belongs to."""
        record = current_record.get()
        run = EngineRun(record.began_s if record is not None else time.perf_counter())
        if record is not None:
            record.runs.append(run)
        return _ObservedRun(self, run)

    def render(self, stats: EngineStats | None, is_healthy: bool) -> bytes:
        """Everything, in Prometheus' text format. stats: the engine's books; None: it does not answer."""
        self._books.stats, self._books.is_healthy = stats, is_healthy
        return generate_latest(self._shown)


class _ObservedRun:
    """A RequestObserver (engine_client.py)."""

    __slots__ = ("_metrics", "_run")

    def __init__(self, metrics: Metrics, run: EngineRun) -> None:
        self._metrics, self._run = metrics, run

    def output(self, output: GenerateOutput) -> None:
        run, metrics = self._run, self._metrics
        now_s, num_tokens = time.perf_counter(), len(output.token_ids)
        if num_tokens:
            if run.first_token_s:
                metrics.inter_token.observe((now_s - run.last_token_s) / num_tokens)
            else:
                metrics.time_to_first_token.observe(now_s - run.began_s)
            metrics.completion_tokens.inc(num_tokens)
        if not run.num_prompt_tokens:
            metrics.prompt_tokens.inc(output.num_prompt_tokens)
            metrics.cached_tokens.inc(output.num_cached_tokens)
        run.take(output, now_s)

    def ended(self, outcome: str) -> None:
        run, metrics = self._run, self._metrics
        run.ended_s, run.outcome = time.perf_counter(), outcome
        metrics.requests.labels(outcome).inc()
        metrics.request.observe(run.ended_s - run.began_s)
        if run.timing is not None:
            metrics.queue.observe(run.timing.queued_s)
            metrics.prefill.observe(run.timing.prefill_s)
        if run.num_prompt_tokens:
            metrics.request_prompt_tokens.observe(run.num_prompt_tokens)
            metrics.request_completion_tokens.observe(run.num_completion_tokens)


class _EngineBooks(Collector):
    """The engine's books as metrics; `stats` is set right before each scrape."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None
        self.is_healthy = False

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("millrace_engine_healthy", "1 where the engine stepped lately or is idle.",
                                value=float(self.is_healthy))
        if self.stats is None:
            return
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(self.stats, field))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(self.stats, field))
