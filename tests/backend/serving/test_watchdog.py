"""The watchdog: what it takes for an engine to be stuck, and what then happens."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

from backend.errors import EngineDeadError
from backend.processes import start_process
from backend.requests import EngineStats
from backend.serving import watchdog as watchdog_module
from backend.serving.watchdog import EngineWatchdog, _children, ask_for_stacks

IDLE = EngineStats(10, 10, 0, 0, 0, 0, 0, 0, 0)
BUSY = dataclasses.replace(IDLE, num_running=2, num_waiting=1, num_steps=5)
PERIOD_S, STUCK_AFTER_S = 0.01, 0.1


class FakeEngine:
    """Answers with `stats`, with an error, or, where it is None, not at all."""

    def __init__(self, stats: EngineStats | EngineDeadError | None) -> None:
        self.answer = stats
        self.steps_by_itself = False

    async def stats(self) -> EngineStats:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.steps_by_itself:
            self.answer = dataclasses.replace(self.answer, num_steps=self.answer.num_steps + 1)
        return self.answer


@contextlib.asynccontextmanager
async def watching(engine: FakeEngine, pid: int | None = None) -> AsyncIterator[EngineWatchdog]:
    watchdog = EngineWatchdog(engine, STUCK_AFTER_S, pid, period_s=PERIOD_S)
    watchdog.start()
    try:
        yield watchdog
    finally:
        await watchdog.stop()


async def until(is_so, timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, "it never came to be"
        await asyncio.sleep(PERIOD_S)


def run_long(engine: FakeEngine, pid: int | None = None) -> EngineWatchdog:
    """The watchdog after several times the limit."""

    async def run() -> EngineWatchdog:
        async with watching(engine, pid) as watchdog:
            await asyncio.sleep(3 * STUCK_AFTER_S)
            return watchdog

    return asyncio.run(run())


def test_an_idle_engine_is_healthy_however_long_it_does_not_step():
    watchdog = run_long(FakeEngine(IDLE))
    assert watchdog.is_healthy and watchdog.stats == IDLE


def test_an_engine_that_steps_is_healthy():
    engine = FakeEngine(BUSY)
    engine.steps_by_itself = True
    assert run_long(engine).is_healthy


def test_an_engine_with_work_that_does_not_step_is_stuck():
    watchdog = run_long(FakeEngine(BUSY))
    assert "no step although 2 requests run and 1 wait" in watchdog.fault


def test_an_engine_that_does_not_answer_is_stuck_and_that_is_said_once(caplog, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(watchdog_module, "ask_for_stacks", asked.append)
    with caplog.at_level(logging.ERROR):
        watchdog = run_long(FakeEngine(None), pid=123)
    assert "answered nothing" in watchdog.fault
    assert asked == [123]
    assert len([record for record in caplog.records if "stacks" in record.message]) == 1


def test_an_engine_that_goes_on_is_healthy_again():
    async def run() -> None:
        engine = FakeEngine(BUSY)
        async with watching(engine) as watchdog:
            await until(lambda: not watchdog.is_healthy)
            engine.steps_by_itself = True
            await until(lambda: watchdog.is_healthy)

    asyncio.run(run())


def test_a_dead_engine_is_not_healthy_and_the_fault_says_why():
    assert run_long(FakeEngine(EngineDeadError("the engine's process is gone"))).fault == "the engine's process is gone"


def hang_with_a_child() -> None:
    """What a hanging engine with a rank is to its watchdog."""
    child = start_process(time.sleep, (60.0,), "hanging-rank", daemon=True)
    child.join()


def test_a_process_that_hangs_and_its_children_write_their_stacks(capfd):
    process = start_process(hang_with_a_child, (), "hanging-engine")
    try:
        written = ""
        end_s = time.monotonic() + 20
        while not ("in hang_with_a_child" in written and written.count("in _run") > 1) and time.monotonic() < end_s:
            children = _children(process.pid)
            if children and all(map(_catches_signal, (process.pid, *children))):
                ask_for_stacks(process.pid)
            time.sleep(0.05)
            written += capfd.readouterr().err
        assert "in hang_with_a_child" in written and written.count("in _run") > 1
        assert process.is_alive() and len(_children(process.pid)) == 1
    finally:
        children = _children(process.pid)
        process.kill()
        process.join()
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _catches_signal(pid: int) -> bool:
    """Whether the process has come so far as to handle the signal, which ends it before. Not what it was forked with,
    which is its parent's until it runs its own program."""
    is_own = _read(pid, "cmdline") != _read(int(_status(pid)["PPid"]), "cmdline")
    return is_own and bool(int(_status(pid)["SigCgt"], 16) >> 9 & 1)


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in _read(pid, "status").splitlines())


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
