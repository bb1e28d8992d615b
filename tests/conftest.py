"""What every test run needs: Triton's interpreter without a GPU, skips for tests that need one, no deadlines."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, so before any test is

# A busy machine is no failure: timing belongs to benchmarks/. Where a change is judged, every run tries the same cases;
# at a desk each run tries new ones.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, devices in (("gpu", 1), ("multi_gpu", 2)):
        if torch.cuda.device_count() < devices:
            skip = pytest.mark.skip(reason=f"needs {devices} CUDA device(s)")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)
