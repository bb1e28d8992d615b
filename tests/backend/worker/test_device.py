from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
import torch

from backend.errors import ConfigError
from backend.worker.device import free_memory_bytes, resolve_device, resolve_dtype
from tests.backend.tiny_model import tiny_source

SOURCE = tiny_source(dtype="bfloat16")


@pytest.mark.parametrize(("dtype", "device", "expected"), [
    ("auto", "cpu", torch.float32), ("auto", "cuda", torch.bfloat16), ("float16", "cuda", torch.float16),
    ("bfloat16", "cpu", torch.bfloat16)])
def test_auto_dtype_is_the_checkpoints_on_cuda_and_float32_on_the_cpu(
        dtype: str, device: str, expected: torch.dtype) -> None:
    assert resolve_dtype(replace(SOURCE.engine, dtype=dtype), SOURCE.model, torch.device(device)) == expected


def test_auto_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = replace(SOURCE.engine, device="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(engine) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(engine, rank=1) == torch.device("cuda", 1)


@pytest.mark.parametrize("device", ["tpu", "mps", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        resolve_device(replace(SOURCE.engine, device=device))


def test_too_few_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="needs GPU 1, but 1 GPUs are visible"):
        resolve_device(replace(SOURCE.engine, device="cuda", tp=2), rank=1)


def test_free_memory_of_the_cpu_is_at_most_the_machines() -> None:
    assert 0 < free_memory_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
