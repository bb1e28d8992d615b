"""Device limits: how fast this GPU reads memory and multiplies matrices, measured, for figures to stand beside.

Used by decode.py and throughput.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

ROUNDS = 12
WARM_UP = 2
MATMUL_SIZE = 8192


def read_bandwidth() -> float:
    """Bytes per second of reading 4 GiB once, by a reduction."""
    data = torch.ones(2**30, dtype=torch.float32, device="cuda")
    return data.numel() * 4 / _median_s(data.sum)


def matmul_flops_s() -> float:
    """Floating-point operations per second of a bfloat16 matmul of MATMUL_SIZE cubed."""
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * MATMUL_SIZE**3 / _median_s(lambda: left @ right)


def _median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[WARM_UP:])
