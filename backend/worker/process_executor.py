"""Process executor: tensor parallelism as one spawned process per rank; a plan goes to all, results come from rank 0.

Owns the processes and their pipes. A rank that raises or dies ends the engine with that rank's own line, and the
others are killed; nothing hangs, because every wait watches every process. Used by executor.py."""

from __future__ import annotations

import signal
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import Pipe, connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

from backend.config import EngineConfig
from backend.errors import ConfigError, EngineDeadError, MillraceError
from backend.model_source import ModelSource
from backend.processes import start_process
from backend.steps import StepPlan, StepResult
from backend.worker.device import resolve_device
from backend.worker.rank_process import RankFailure, RankStart, run_rank

CONNECT_LIMIT_S = 120.0  # to start, import torch and reach one another; on a slow disk that is most of a minute
FAILURE_GRACE_S = 1.0  # after a first failure: time for the others to say theirs, so that the cause can be told


class ProcessExecutor:
    """tp ranks on one host; see executor.Executor."""

    def __init__(self, source: ModelSource, engine: EngineConfig, max_in_flight: int) -> None:
        resolve_device(engine, engine.tp - 1)  # too few GPUs: say so before anything starts
        self.max_in_flight = max_in_flight
        self._failure: MillraceError | None = None
        self._pipes: list[connection.Connection] = []
        self._processes: list[BaseProcess] = []
        self._folder = tempfile.TemporaryDirectory(prefix="millrace-")  # NCCL's monitor reads the rendezvous to the end
        try:
            rendezvous = str(Path(self._folder.name) / "rendezvous")
            for rank in range(engine.tp):
                self._start_rank(RankStart(source, engine, rank, rendezvous))
            self._gather(limit_s=CONNECT_LIMIT_S)
            self.num_blocks = min(self._gather())
            self._broadcast(self.num_blocks)
            self._gather()
        except BaseException:
            self.close()
            raise

    def launch(self, plan: StepPlan) -> ProcessStep:
        """See Executor.launch."""
        self._broadcast(plan)
        return ProcessStep(self, plan.step)

    @property
    def pids(self) -> list[int]:
        """Process ids by rank; empty once closed."""
        return [process.pid for process in self._processes]

    def result(self, step: int) -> StepResult:
        """The result of a launched step, steps being asked for in their order."""
        _, result = self._receive([0])
        assert result.step == step, f"rank 0 sent step {result.step} where {step} was due"
        return result

    def close(self) -> None:
        """See Executor.close."""
        if self._failure is None:
            self._failure = EngineDeadError("the executor is closed")
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:  # a rank has nothing to save, and may hang in a collective
            process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []
        self._folder.cleanup()

    def _start_rank(self, start: RankStart) -> None:
        ours, theirs = Pipe()
        process = start_process(run_rank, (start, theirs), f"rank-{start.rank}", daemon=True)
        theirs.close()  # so that the rank's death closes the pipe
        self._pipes.append(ours)
        self._processes.append(process)

    def _broadcast(self, message: Any) -> None:
        if self._failure is not None:
            raise self._failure
        data = ForkingPickler.dumps(message)  # once for all ranks
        try:
            for pipe in self._pipes:
                pipe.send_bytes(data)
        except OSError:
            self._fail(None)

    def _gather(self, limit_s: float | None = None) -> list[Any]:
        """The next message of every rank, by rank. Raises what a rank raised; ConfigError after the limit."""
        messages: dict[int, Any] = {}
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while len(messages) < len(self._pipes):
            missing = [rank for rank in range(len(self._pipes)) if rank not in messages]
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            received = self._receive(missing, left_s)
            if received is None:
                raise ConfigError(f"ranks {missing} of tp={len(self._pipes)} did not meet the others within "
                                  f"{limit_s:g} s; set NCCL_DEBUG=INFO to see why, try NCCL_P2P_DISABLE=1, or tp=1")
            messages[received[0]] = received[1]
        return [messages[rank] for rank in range(len(self._pipes))]

    def _receive(self, ranks: list[int], limit_s: float | None = None) -> tuple[int, Any] | None:
        """The first message of any of the ranks, with its rank; None after the limit. Raises what a rank raised."""
        if self._failure is not None:
            raise self._failure
        pipes = [self._pipes[rank] for rank in ranks]
        ready = connection.wait([*pipes, *(process.sentinel for process in self._processes)], limit_s)
        if not ready:
            return None
        for rank, pipe in zip(ranks, pipes, strict=True):
            if pipe in ready:
                message = _read(pipe)
                if message is None or isinstance(message, RankFailure):
                    self._fail(message)
                return rank, message
        self._fail(None)

    def _fail(self, known: RankFailure | None) -> NoReturn:
        """Ends everything and raises the cause: a rank that was killed, else the earliest failure that a rank sent.

        One rank's end makes the others' collectives fail, so theirs may arrive before its own."""
        failures = [] if known is None else [known]
        deadline = time.monotonic() + FAILURE_GRACE_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for pipe in self._pipes:
            while pipe.poll() and (message := _read(pipe)) is not None:
                if isinstance(message, RankFailure):
                    failures.append(message)
        killed = [(rank, -process.exitcode) for rank, process in enumerate(self._processes)
                  if process.exitcode is not None and process.exitcode < 0]
        if killed:
            rank, number = killed[0]
            cause = "; the machine may be out of memory" if number == signal.SIGKILL else ""
            self._failure = EngineDeadError(f"rank {rank} was killed by {signal.Signals(number).name}{cause}")
        elif failures:
            self._failure = min(failures, key=lambda failure: failure.when_s).error
        else:
            codes = [process.exitcode for process in self._processes]
            self._failure = EngineDeadError(f"a rank ended without a word; exit codes by rank: {codes}")
        self.close()
        raise self._failure


@dataclass(frozen=True, slots=True)
class ProcessStep:
    """A step that the ranks are running; see executor.StepHandle."""

    executor: ProcessExecutor
    step: int

    def wait(self) -> StepResult:
        """Blocks until rank 0 has sent the result."""
        return self.executor.result(self.step)


def _read(pipe: connection.Connection) -> Any:
    """The next message, None where the other end is gone."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None
