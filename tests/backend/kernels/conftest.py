"""Fixtures of the kernel tests: the device, its dtypes, and memory that shows when something unwritten is read."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter computes with numpy, which has no bfloat16; its stand-in truncates where the GPU rounds.
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.float16]


@pytest.fixture
def device() -> str:
    """Where the kernels under test run: CUDA if there is a device, else the CPU through Triton's interpreter."""
    return DEVICE


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype in which the kernels are tested on this device."""
    return request.param


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test sees the same random numbers, whatever runs before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that a result that was never written, or scratch that was never filled, shows."""
    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
