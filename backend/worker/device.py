"""Device and dtype: what "auto" means, and how much memory is free. The only place that decides either.

Used by worker.py and executor.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from backend.config import EngineConfig, ModelConfig
from backend.errors import ConfigError


def resolve_device(engine: EngineConfig, rank: int = 0) -> torch.device:
    """The device of a rank; "auto" is CUDA where there is one. Raises ConfigError for one that is not here."""
    name = engine.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={engine.device!r} is not supported; use auto, cpu or cuda")
    if device.type == "cpu":
        return torch.device("cpu")
    index = rank if device.index is None else device.index + rank
    count = torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"device={engine.device!r} with tp={engine.tp} needs GPU {index}, but {count} GPUs are "
                          "visible; lower tp, or use device=cpu")
    return torch.device("cuda", index)


def resolve_dtype(engine: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The compute dtype; "auto" is the checkpoint's on CUDA and float32 on the CPU."""
    name = engine.dtype
    if name == "auto":
        name = model.dtype if device.type == "cuda" else "float32"
    return getattr(torch, name)


def device_name(device: torch.device) -> str:
    """As its maker calls it, and where it is; "cpu"."""
    return f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else "cpu"


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one of this thread meanwhile: launches, streams and events go by that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def synchronize(device: torch.device) -> None:
    """Waits for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch caches but does not use is free too
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_ram_bytes(), _left_in_cgroup_bytes())


def _available_ram_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise ConfigError("/proc/meminfo does not say MemAvailable; give cache_max_entry_count as a number of blocks")


def _left_in_cgroup_bytes() -> int:
    """A container's own limit less what it uses; no limit is a very large number."""
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)
