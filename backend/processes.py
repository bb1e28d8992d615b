"""Processes: how the ranks and the engine's process are started, wherever LLM is used.

Spawned, because CUDA does not survive a fork, but without importing the user's script again: what runs here is ours
alone, so a script needs no `if __name__ == "__main__"`. Used by worker/process_executor.py, engine/async_engine.py."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from backend.logs import configure_logging

STACKS_SIGNAL = signal.SIGUSR1  # a process of ours writes the stacks of its threads to stderr
_LOCK = threading.Lock()


def start_process(target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool = False) -> BaseProcess:
    """Starts `target(*args)`, which logs as this process does; both have to be found by importing a module of ours.

    daemon  the process is ended with this one"""
    level = logging.getLogger().getEffectiveLevel()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(level, target, args), name=name, daemon=daemon)
    with _LOCK, _without_main():
        process.start()
    return process


def _run(level: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    # Answered even by a process that hangs in native code: serving/watchdog.py asks for the stacks of a stuck engine.
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    configure_logging(level)
    target(*args)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides the script that runs from multiprocessing, which would have the new process import it.

    A main module with neither file nor spec is what an interactive Python has: there is nothing to import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
