"""Executor: the ranks as the engine sees them. Launch a plan, wait for its result; how many processes that is, and how
they die, is settled here.

Used by engine.py and llm.py, which may know nothing else of backend/worker; tests pass a fake one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import EngineDeadError
from backend.model_source import ModelSource
from backend.steps import StepPlan, StepResult
from backend.worker.device import resolve_device
from backend.worker.worker import Worker


class StepHandle(Protocol):
    """A launched step."""

    def wait(self) -> StepResult:
        """Blocks until the step is done. Raises EngineDeadError if it never will be."""
        ...


class Executor(Protocol):
    """All ranks together.

    num_blocks     KV blocks that plans may use, 0..num_blocks - 1
    max_in_flight  how many launched, unread steps pay off"""

    num_blocks: int
    max_in_flight: int

    def launch(self, plan: StepPlan) -> StepHandle:
        """Starts a plan on every rank. Handles are waited for in the order of launching. Raises EngineDeadError."""
        ...

    def close(self) -> None:
        """Ends the ranks and frees what they hold; may be called twice."""
        ...


def start_executor(source: ModelSource, engine: EngineConfig, decide_num_blocks: Callable[[int], int]) -> Executor:
    """Loads the model on every rank.

    decide_num_blocks  free bytes after the weights, the least over the ranks → number of KV blocks
    Raises ConfigError or CheckpointError where the model cannot be run like this, EngineDeadError where a rank dies."""
    if engine.tp == 1:
        return LocalExecutor(source, engine, decide_num_blocks)
    from backend.worker.process_executor import ProcessExecutor

    return ProcessExecutor(source, engine, decide_num_blocks)


def max_in_flight(engine: EngineConfig) -> int:
    """On CUDA the host prepares one step while the device works on another; on the CPU both are the same cores."""
    return 2 if resolve_device(engine).type == "cuda" else 1


class LocalExecutor:
    """One rank, in this process."""

    def __init__(self, source: ModelSource, engine: EngineConfig, decide_num_blocks: Callable[[int], int]) -> None:
        self._worker: Worker | None = Worker(source, engine, TensorParallel())
        self.num_blocks = decide_num_blocks(self._worker.free_bytes())
        self.max_in_flight = max_in_flight(engine)
        self._worker.allocate_kv(self.num_blocks)

    def launch(self, plan: StepPlan) -> StepHandle:
        """See Executor.launch."""
        if self._worker is None:
            raise EngineDeadError("the executor is closed")
        return self._worker.run(plan)

    def close(self) -> None:
        """See Executor.close."""
        self._worker = None
