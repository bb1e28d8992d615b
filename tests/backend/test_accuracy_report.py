"""The stored report of a format: written beside the weights, read back, judged against the bound."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from backend.accuracy_report import (
    ACCURACY_FILE,
    PLAIN_KV,
    AccuracyReport,
    drop_reports,
    loss_warnings,
    read_reports,
    store_report,
)
from backend.errors import CheckpointError
from backend.workspace import WEIGHTS
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

GOOD = AccuracyReport("tiny", "int4", PLAIN_KV, "tiny, bfloat16", "a text", 1000, 10.0, 10.2, 0.01, 0.97, "2026-11-21",
                      {"python": "3.11", "torch": "2.13"})
BAD = dataclasses.replace(GOOD, kv="int4 (online)", perplexity=11.0)


def test_a_report_is_read_as_it_was_stored(tmp_path: Path) -> None:
    store_report(tmp_path, GOOD)
    store_report(tmp_path, BAD)
    assert read_reports(tmp_path) == [GOOD, BAD]
    assert [file.name for file in tmp_path.iterdir()] == [ACCURACY_FILE]


def test_a_second_measurement_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store_report(tmp_path, BAD)
    store_report(tmp_path, GOOD)
    better = dataclasses.replace(BAD, perplexity=10.1)
    store_report(tmp_path, better)
    assert read_reports(tmp_path) == [GOOD, better]


def test_what_is_dropped_is_a_kv_format_with_all_weights(tmp_path: Path) -> None:
    for report in (GOOD, BAD, dataclasses.replace(BAD, weights="bfloat16")):
        store_report(tmp_path, report)
    drop_reports(tmp_path, BAD.kv)
    assert read_reports(tmp_path) == [GOOD]
    drop_reports(tmp_path, GOOD.kv)
    drop_reports(tmp_path, GOOD.kv)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_report_has_none(tmp_path: Path) -> None:
    assert read_reports(tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"reports": [{"kv": "int8"}]}', '{"reports": 1}',
                                  *(json.dumps({"reports": [dataclasses.asdict(GOOD) | wrong]}) for wrong in (
                                      {"perplexity": math.nan}, {"base_perplexity": 0}, {"num_tokens": "x"},
                                      {"text": 3}))])
def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / ACCURACY_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{ACCURACY_FILE} is no accuracy report .*; delete it"):
        read_reports(tmp_path)


def test_a_loss_is_past_the_bound_by_its_perplexity_or_its_divergence() -> None:
    assert not GOOD.is_past_bound
    assert not dataclasses.replace(GOOD, perplexity=9.0).is_past_bound
    assert BAD.is_past_bound
    assert dataclasses.replace(GOOD, perplexity=9.0, kl_divergence=0.2).is_past_bound


def test_a_loss_of_a_kv_format_concerns_that_format_and_one_of_weights_all(tmp_path: Path) -> None:
    store_report(tmp_path, BAD)
    (warning,) = loss_warnings(tmp_path, "int4 (online)")
    assert "perplexity is +10.0%" in warning and "bounds of +5% and 0.1; use another quant_policy" in warning
    assert loss_warnings(tmp_path, PLAIN_KV) == loss_warnings(tmp_path, "int8 (online)") == []
    store_report(tmp_path, dataclasses.replace(GOOD, perplexity=20.0))
    (warning,) = loss_warnings(tmp_path, "int8 (online)")
    assert "+100.0%" in warning and "quantise in smaller groups" in warning


def test_a_warning_names_what_was_compared_with(tmp_path: Path) -> None:
    store_report(tmp_path, dataclasses.replace(BAD, base="tiny, weights int4, groups of 64"))
    (warning,) = loss_warnings(tmp_path, BAD.kv)
    assert "perplexity is +10.0% against tiny, weights int4, groups of 64, KL" in warning
    assert "unquantised" not in warning


def test_a_damaged_report_is_a_warning_not_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / ACCURACY_FILE).write_text("{")
    (warning,) = loss_warnings(tmp_path, PLAIN_KV)
    assert "no accuracy report" in warning


def test_loading_a_model_past_the_bound_warns_with_the_number_once(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / WEIGHTS
    weights.mkdir(parents=True)
    store_report(weights, dataclasses.replace(GOOD, perplexity=10.7))
    source = dataclasses.replace(tiny_source(), path=tmp_path)
    driver = StepDriver(source)
    driver.generate(0, [3, 4, 5], 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "+7.0%" in warnings[0]


def test_the_short_report_says_format_change_and_text() -> None:
    line = BAD.short()
    for part in ("int4 (online)", "+10.00%", "10 → 11", "97.00%", "a text, 1,000 tokens", "tiny, bfloat16"):
        assert part in line
