"""Device limits: how fast this GPU reads memory and multiplies matrices, measured, for figures to stand beside.

Used by throughput.py, kernels.py and step_table.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch

ROUNDS = 12
WARM_UP = 2
MATMUL_SIZE = 8192


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one GPU can do.

    read_bytes_s    bytes per second of reading memory once
    matmul_flops_s  floating-point operations per second of a large bfloat16 matmul"""

    read_bytes_s: float
    matmul_flops_s: float

    def __str__(self) -> str:
        return f"read {self.read_bytes_s / 1e12:.2f} TB/s, matmul {self.matmul_flops_s / 1e12:.0f} TFLOP/s"

    def as_json(self) -> dict[str, float]:
        return {"read_bandwidth_tb_s": round(self.read_bytes_s / 1e12, 3),
                "matmul_tflop_s": round(self.matmul_flops_s / 1e12, 1)}


def measure_limits() -> DeviceLimits:
    """Both rates, now; what the measurement took of the memory is given back."""
    limits = DeviceLimits(_read_bytes_s(), _matmul_flops_s())
    torch.cuda.empty_cache()
    return limits


def need_gpu() -> None:
    """Raises ClickException where there is none."""
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a CUDA GPU; on a CPU use: python -m benchmarks.cpu")


def device_memory_gib() -> float:
    """Memory of the GPU that is in use, by whatever process."""
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return (total_bytes - free_bytes) / 2**30


def _read_bytes_s() -> float:
    """Of a reduction over 4 GiB."""
    data = torch.ones(2**30, dtype=torch.float32, device="cuda")
    return data.numel() * 4 / _median_s(data.sum)


def _matmul_flops_s() -> float:
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
