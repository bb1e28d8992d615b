"""Executor: the ranks as the engine sees them. Launch a plan, wait for its result; how many processes that is, and how
they die, is settled here.

Used by engine.py and llm.py, which may know nothing else of backend/worker; tests pass a fake one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from backend.config import EngineConfig, check_engine
from backend.distributed import TensorParallel
from backend.errors import EngineDeadError
from backend.model_source import ModelSource
from backend.steps import StepPlan, StepResult
from backend.worker.device import resolve_device
from backend.worker.model_runner import RunningStep
from backend.worker.process_executor import ProcessExecutor
from backend.worker.worker import Worker, rank_error


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


def start_executor(source: ModelSource, engine: EngineConfig) -> Executor:
    """Loads the model on every rank, as far as the memory plan allows.

    Raises CapacityError where it does not fit, ConfigError or CheckpointError where the model cannot be run like this,
    EngineDeadError where a rank dies."""
    check_engine(source.model, engine)  # before any rank starts
    # On CUDA the host prepares one step while the device works on another; on the CPU both are the same cores.
    max_in_flight = 2 if resolve_device(engine).type == "cuda" else 1
    executor = LocalExecutor if engine.tp == 1 else ProcessExecutor
    return executor(source, engine, max_in_flight)


class LocalExecutor:
    """One rank, in this process."""

    def __init__(self, source: ModelSource, engine: EngineConfig, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        try:
            self.worker: Worker | None = Worker(source, engine, TensorParallel())
            self.num_blocks = self.worker.num_blocks()
            self.worker.allocate_kv(self.num_blocks)
        except Exception as error:
            raise rank_error(error, rank=0) from error

    def launch(self, plan: StepPlan) -> StepHandle:
        """See Executor.launch."""
        if self.worker is None:
            raise EngineDeadError("the executor is closed")
        try:
            return LocalStep(self.worker.run(plan))
        except Exception as error:
            raise rank_error(error, rank=0) from error

    def close(self) -> None:
        """See Executor.close."""
        self.worker = None


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A step that runs on this process's device."""

    running: RunningStep

    def wait(self) -> StepResult:
        """See StepHandle.wait."""
        try:
            return self.running.wait()
        except Exception as error:
            raise rank_error(error, rank=0) from error
