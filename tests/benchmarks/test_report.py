"""Report: page, README and picture say what the results say."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import plot, report, results_table
from benchmarks.record import RESULTS
from benchmarks.results_table import Results


@pytest.fixture(scope="module")
def results():
    return Results.read(RESULTS)


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_results(page, results):
    text = page.read_text(encoding="utf-8")
    assert report.rewritten(text, results) == text, "run: python -m benchmarks.report"


def test_every_section_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in report.PAGES)
    assert all(f"<!-- {name} -->" in text and f"<!-- end of {name} -->" in text for name in report.SECTIONS)


def test_the_picture_shows_the_results(results):
    shown = plot.drawn_points(report.PICTURE.read_text(encoding="utf-8"))
    assert shown == json.loads(json.dumps(results_table.points(results))), "run: python -m benchmarks.report"


def test_a_changed_figure_changes_the_page(results):
    page = report.PAGES[0].read_text(encoding="utf-8")
    peers = json.loads(json.dumps(results.peers))
    peers["bf16"]["m7"]["vllm"]["a1"] = 987.6
    changed = report.rewritten(page, dataclasses.replace(results, peers=peers))
    assert "987.6" in changed and "987.6" not in page


def test_the_newest_run_that_has_a_test_counts(tmp_path):
    (tmp_path / "peers_h200.json").write_text((RESULTS / "peers_h200.json").read_text())
    run = {"engine": "millrace", "quant_policy": 0, "shape": "m7"}
    tests = {name: {"value": value} for name, value in (("a1", 1), ("b", 2))}
    documents = {"throughput_m7": {**run, "date": "2026-11-21 02:00 UTC", "tests": tests},
                 "throughput_m7_b": {**run, "date": "2026-11-22 02:00 UTC", "tests": {"b": {"value": 3}}},
                 "throughput_m7_vllm": {**run, "engine": "vllm", "date": "2026-11-23", "tests": {"b": {"value": 4}}},
                 "throughput_m7_kv8": {**run, "quant_policy": 8, "date": "2026-11-23", "tests": {"b": {"value": 5}}},
                 "throughput_m7_awq": {**run, "shape": "m7_awq", "date": "2026-11-24", "tests": {"b": {"value": 6}}}}
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    read = Results.read(tmp_path)
    assert read.ours["m7"] == {"a1": {"value": 1}, "b": {"value": 3}}
    assert read.ours["m7_kv8"] == {"b": {"value": 5}} and read.ours["m7_awq"] == {"b": {"value": 6}}
    assert read.runs == [documents[f"throughput_{name}"] for name in ("m7", "m7_b", "m7_kv8", "m7_awq")]


def test_quantised_figures_stand_beside_those_of_bf16_and_of_the_others(results):
    figure = {"value": 1.75, "limit": 1.11, "share": 0.634, "unit": "ms"}
    rows = results_table.quantised(dataclasses.replace(results, ours={**results.ours, "m7_awq": {"b": figure}}))
    bf16 = results.ours["m7"]["b"]["value"]
    assert (f"| m7, weights int4 | b: batch 1 at context 2,048 | ms | 1.75 | {bf16:.2f} | 4.01 | 7.05 | 1.11 | 63% |"
            in rows)
    assert "| m7, KV int8 | c: " in rows and "g8, KV int4" not in rows


def test_numbers_have_the_digits_that_mean_something():
    assert [results_table.number(value, "tokens/s") for value in (211.84, 14660.4, None)] == ["211.8", "14,660", "–"]
    assert results_table.number(4.2659, "ms") == "4.27"


def test_a_table_of_steps_marks_its_cliffs():
    step = {"batch": 1, "context": 128, "ms": 3.5, "floor_ms": 3.0, "share": 0.857, "is_cliff": False}
    document = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0", "triton": "3.6.0"}, "python": "3.12.3",
                "command": "python -m benchmarks.step_table", "date": "2026-11-21", "read_bandwidth_tb_s": 4.3,
                "matmul_tflop_s": 786.0, "kv_token_bytes": {"planned": 524288, "allocated": 524288},
                "steps": [step, {**step, "batch": 2, "ms": 9.0, "share": 0.333, "is_cliff": True}]}
    text = results_table.steps(Results({}, [], {}, {}, {}, {"m7": document}, []))
    assert "| 1 | 3.50 (86%) |" in text and "| 2 | 9.00 (33%) ! |" in text
    assert "1 of 2 points" in text
