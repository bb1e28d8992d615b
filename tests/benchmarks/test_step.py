"""Step: what a trace says of when kernels run."""

from __future__ import annotations

import pytest

from benchmarks.step import busy_and_idle


@pytest.mark.parametrize(("intervals", "busy", "idle"), [
    ([(0, 2), (3, 5)], 4, 1),
    ([(3, 5), (0, 2)], 4, 1),
    ([(0, 4), (3, 5), (4, 5)], 5, 0),
    ([(0, 10), (2, 3), (12, 13)], 11, 2)])
def test_overlapping_kernels_count_once_and_gaps_are_idle(intervals, busy, idle):
    assert busy_and_idle(intervals) == (busy, idle)
