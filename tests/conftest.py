"""What every test run needs: Triton's interpreter without a GPU, skips for tests that need one, no deadlines."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, so before any test is
if not torch.cuda.is_available() or "PYTEST_XDIST_WORKER" in os.environ:
    # Here and in the processes that tests start. Threads of OpenMP that have fewer cores than they are spin while they
    # wait for one another: with two runs of the suite on two cores, six times as long; with fifteen workers on the
    # sixteen cores of a machine with a GPU too.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Read when grpc is imported. Its fork handlers start threads in a child that closes all files and then wants to exec,
# as pexpect's children do, and now and then abort it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A busy machine is no failure: timing belongs to benchmarks/. Where a change is judged, every run tries the same cases;
# at a desk each run tries new ones.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    for marker, is_there, needed in (("gpu", torch.cuda.device_count() >= 1, "a CUDA device"),
                                     ("hopper", is_hopper, "a Hopper GPU"),
                                     ("multi_gpu", torch.cuda.device_count() >= 2, "two CUDA devices")):
        if not is_there:
            skip = pytest.mark.skip(reason=f"needs {needed}")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)
