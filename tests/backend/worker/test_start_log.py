from __future__ import annotations

import logging

import pytest

from backend.worker import IMPORTS_BEGIN_S, start_log
from backend.worker.start_log import StartLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says, in its one element."""
    now = [IMPORTS_BEGIN_S + 2.0]
    monkeypatch.setattr(start_log.time, "perf_counter", lambda: now[0])
    return now


def test_each_phase_and_the_sum_are_one_line(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = StartLog(clock[0], is_silent=False)
    with log.phase("weights") as facts:
        clock[0] += 1.5
        facts.append("12.55 GiB read")
    clock[0] += 0.5  # another rank takes longer
    with log.phase("KV cache"):
        clock[0] += 0.25
    log.log_ready()
    assert caplog.messages == ["weights: 12.55 GiB read, 1.5 s", "KV cache: 0.2 s",
                               "ready in 4.2 s: imports 2.0, weights 1.5, KV cache 0.2"]
    assert log.seconds == pytest.approx({"imports": 2.0, "weights": 1.5, "KV cache": 0.25})


def test_other_ranks_measure_in_silence(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = StartLog(clock[0], is_silent=True)
    with log.phase("weights"):
        clock[0] += 1.0
    log.log_ready()
    assert caplog.messages == []
    assert log.seconds["weights"] == pytest.approx(1.0)
