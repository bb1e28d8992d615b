"""Record: how a benchmark keeps its result, with what has to stand beside a number: hardware, versions, command, date.

Used by each module of benchmarks/ that measures."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backend.errors import ConfigError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "vllm", "lmdeploy")


def conditions() -> dict[str, Any]:
    """Device, versions, command and date of this run."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU: {_cpu_name()}",
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := _version(name)) is not None},
        "command": " ".join(["python", "-m", _module_name(), *_conditions_among(sys.argv[1:])]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def check_folder(file: Path) -> None:
    """Makes the folder of a file that is to be written at the end. Raises ConfigError where that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(file, error) from None
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file.parent} is not writable; choose another file")


def save(file: Path, figures: dict[str, Any]) -> None:
    """Writes figures and conditions as one JSON document, whole or not at all. Raises ConfigError."""
    check_folder(file)
    partial = file.with_name(f".{file.name}.partial")
    text = json.dumps({**conditions(), **figures}, indent=2, ensure_ascii=False) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _not_written(file, error) from None


def _not_written(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{file} cannot be written: {error.strerror}; make room or choose another file")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _conditions_among(arguments: list[str]) -> list[str]:
    """Where the result is kept is no condition of it, and a key is nobody's business."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0].replace("-", "_")
        if name not in ("__json", "__api_key"):
            kept.append(argument)
        elif "=" not in argument:
            next(rest, None)
    return kept


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
