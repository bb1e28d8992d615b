"""Kernel benchmark: every case can be launched, and what it is said to move and compute is right."""

from __future__ import annotations

import pytest
import torch

from backend.kv_format import KvFormat
from benchmarks import kernels
from benchmarks.device_limits import DeviceLimits
from benchmarks.graph_timing import L2_BYTES, MAX_COPIES, num_copies
from tests.benchmarks.tiny import TINY, TINY_AWQ


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    for name, value in {"LINEAR_TOKENS": (1, 3, 5), "DECODE_TOKENS": (1, 3), "BATCHES": (1, 3), "CONTEXTS": (64, 128),
                        "PREFILLS": ((2, 64),)}.items():
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "num_copies", lambda num_bytes: 2)


@pytest.mark.parametrize("group", kernels.GROUPS)
def test_every_case_can_be_launched_on_each_of_its_buffers(group):
    with torch.inference_mode(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        names = set()
        for case in kernels.GROUPS[group](TINY_AWQ if group == "linear_w4" else TINY):
            names.add((case.row, case.column))
            for copy in range(case.copies):
                case.launch(copy)
            assert case.num_bytes > 0
        assert len(names) >= 1


def test_decode_attention_moves_the_kv_the_queries_and_the_output():
    queries_and_output = 2 * 4 * 16 * 2
    for kv, bytes_per_value, scales in ((KvFormat.AS_MODEL, 2, 0), (KvFormat.INT8, 1, 8), (KvFormat.INT4, 0.5, 8)):
        case = next(kernels.decode_attention_cases(TINY, kv))
        assert case.num_bytes == 64 * 2 * (2 * 16 * bytes_per_value + scales) + queries_and_output


def test_a_floor_is_the_larger_of_bytes_and_arithmetic():
    case = kernels.Case("row", "column", num_bytes=2e9, flops=3e12, copies=1, launch=lambda copy: None)
    assert case.floor_s(DeviceLimits(1e9, 1e12)) == 3.0
    assert case.floor_s(DeviceLimits(1e9, 1e13)) == 2.0


def test_buffers_do_not_fit_into_the_cache_together_unless_they_are_very_small():
    assert num_copies(1) == MAX_COPIES
    assert num_copies(1e9) == 2
    assert num_copies(32 * 2**20) * 32 * 2**20 > 4 * L2_BYTES
