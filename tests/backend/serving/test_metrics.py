"""Metrics: what is measured of requests, and what a scrape shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from backend.requests import (
    EngineStats,
    FinishReason,
    GenerateOutput,
    GenerateRequest,
    RequestTiming,
    SamplingParams,
)
from backend.serving.metrics import Metrics
from backend.serving.request_record import RequestRecord, current_record

ROOT = Path(__file__).parents[3]
STATS = EngineStats(num_blocks=100, num_free_blocks=40, num_running=3, num_waiting=7, num_sessions=2,
                    num_preemptions=5, num_prompt_tokens=0, num_cached_tokens=0, num_completion_tokens=0, num_aborts=4,
                    num_steps=11)
REQUEST = GenerateRequest("r", (1, 2, 3), SamplingParams())


def samples(metrics: Metrics, stats: EngineStats | None = STATS, is_healthy: bool = True) -> dict[str, float]:
    text = metrics.render(stats, is_healthy).decode()
    return {sample.name + "".join(f",{value}" for key, value in sorted(sample.labels.items()) if key != "le"):
            sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def run_of_three_tokens(metrics: Metrics) -> None:
    observer = metrics.observe(REQUEST)
    observer.output(GenerateOutput("r", (5,), None, 3, 2, 1, timing=RequestTiming(0.25, 0.5, 0.0, 0)))
    observer.output(GenerateOutput("r", (6, 7), FinishReason.STOP, 3, 2, 3))
    observer.ended("stop")


def test_a_request_is_counted_once_and_its_tokens_as_they_come():
    metrics = Metrics()
    run_of_three_tokens(metrics)
    values = samples(metrics)
    assert values["millrace_requests_total,stop"] == 1
    assert values["millrace_prompt_tokens_total"] == 3
    assert values["millrace_prompt_tokens_cached_total"] == 2
    assert values["millrace_completion_tokens_total"] == 3
    assert values["millrace_time_to_first_token_seconds_count"] == 1
    assert values["millrace_inter_token_seconds_count"] == 1
    assert values["millrace_queue_seconds_sum"] == 0.25
    assert values["millrace_prefill_seconds_sum"] == 0.5
    assert values["millrace_request_completion_tokens_sum"] == 3


def test_a_refused_request_counts_by_its_error_and_has_no_tokens():
    metrics = Metrics()
    metrics.observe(REQUEST).ended("CapacityError")
    values = samples(metrics)
    assert values["millrace_requests_total,CapacityError"] == 1
    assert values["millrace_request_prompt_tokens_count"] == 0


def test_the_engines_books_are_shown_as_they_are_at_the_scrape():
    values = samples(Metrics())
    assert values["millrace_requests_running"] == 3
    assert values["millrace_requests_waiting"] == 7
    assert (values["millrace_kv_blocks"], values["millrace_kv_blocks_free"]) == (100, 40)
    assert values["millrace_preemptions_total"] == 5
    assert values["millrace_aborts_total"] == 4
    assert values["millrace_engine_healthy"] == 1


def test_an_engine_that_does_not_answer_leaves_its_books_out():
    values = samples(Metrics(), None, is_healthy=False)
    assert values["millrace_engine_healthy"] == 0
    assert "millrace_requests_running" not in values


def test_runs_are_entered_into_the_record_of_their_call():
    record = RequestRecord("call-1")
    token = current_record.set(record)
    try:
        run_of_three_tokens(Metrics())
    finally:
        current_record.reset(token)
    (run,) = record.runs
    assert (run.outcome, run.num_completion_tokens) == ("stop", 3)
    timing = record.timing()
    assert (timing["queued"], timing["prefill"], timing["preempted"]) == (0.25, 0.5, 0.0)
    assert timing["decode"] == run.last_token_s - run.first_token_s


def metric_names() -> set[str]:
    metrics = Metrics()
    run_of_three_tokens(metrics)
    metrics.http_responses.labels("/health", "200").inc()
    text = metrics.render(STATS, True).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_the_dashboard_asks_for_metrics_that_exist():
    dashboard = json.loads((ROOT / "docker" / "grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel.get("targets", ())
             for name in re.findall(r"\bmillrace_\w+", target["expr"])}
    assert asked
    assert asked <= metric_names()


def test_every_metric_is_in_the_documentation():
    page = (ROOT / "docs" / "operations.md").read_text()
    ours = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in metric_names() if name.startswith("millrace_")}
    assert not sorted(name for name in ours if f"`{name}" not in page)
