"""Rank process: one tensor-parallel rank in a process of its own. The other end of its pipe is process_executor.py.

It sends "connected", then the number of KV blocks that it has room for; receives the number for all, sends "ready";
then receives plans, of which rank 0 sends the results. Whatever goes wrong is sent as a RankFailure. A rank never
outlives the process that started it."""

from __future__ import annotations

import datetime
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import Any

import torch
import torch.distributed as dist

from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import EngineDeadError, MillraceError
from backend.model_source import ModelSource
from backend.worker.device import resolve_device
from backend.worker.model_runner import RunningStep
from backend.worker.worker import Worker, rank_error

# How far ranks may drift apart within a step before the one that waits gives up.
COLLECTIVE_LIMIT = datetime.timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class RankStart:
    """What a rank is started with. rendezvous: a path, without a file yet, at which the ranks find one another."""

    source: ModelSource
    engine: EngineConfig
    rank: int
    rendezvous: str


@dataclass(frozen=True, slots=True)
class RankFailure:
    """Why a rank ended. when_s is the machine's monotonic clock: the earliest failure is the cause of the others."""

    when_s: float
    error: MillraceError


def run_rank(start: RankStart, pipe: connection.Connection) -> None:
    """The body of a rank's process; ends when the parent closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may only want to stop an answer
    threading.Thread(target=_die_with_parent, daemon=True).start()
    reports = _Reports(start.rank, pipe)
    try:
        _serve(start, pipe, reports)
    except EOFError:
        reports.exit()
    except BaseException as error:
        reports.fail(error)


class _Reports:
    """The sending side of the pipe, which the launching and the waiting thread share."""

    def __init__(self, rank: int, pipe: connection.Connection) -> None:
        self.rank = rank
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def fail(self, error: BaseException) -> None:
        """Says why, and ends the process."""
        when_s = time.monotonic()
        try:
            self.send(RankFailure(when_s, rank_error(error, self.rank)))
        finally:
            self.exit()

    def exit(self) -> None:
        """Ends the process at once: a communicator whose peers are gone could block in its destructor."""
        os._exit(0)


def _serve(start: RankStart, pipe: connection.Connection, reports: _Reports) -> None:
    tp = _connect(start)
    reports.send("connected")
    worker = Worker(start.source, start.engine, tp)
    reports.send(worker.num_blocks())
    worker.allocate_kv(pipe.recv())
    reports.send("ready")
    steps: queue.SimpleQueue[RunningStep] = queue.SimpleQueue()
    if start.rank == 0:
        threading.Thread(target=_send_results, args=(steps, reports), daemon=True).start()
    while True:
        step = worker.run(pipe.recv())
        if start.rank == 0:
            steps.put(step)


def _connect(start: RankStart) -> TensorParallel:
    """Joins the other ranks and sums a one from each, which shows that they can talk."""
    device = resolve_device(start.engine, start.rank)
    size = start.engine.tp
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks share a host, whose name need not resolve
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=f"file://{start.rendezvous}",
                            rank=start.rank, world_size=size, timeout=COLLECTIVE_LIMIT)
    tp = TensorParallel(start.rank, size, dist.group.WORLD)
    total = int(tp.all_reduce(torch.ones(1, device=device)))
    if total != size:
        raise EngineDeadError(f"the start-up all-reduce over {size} ranks gave {total} instead of {size}; "
                              "check the links between the GPUs, or set NCCL_P2P_DISABLE=1")
    return tp


def _send_results(steps: queue.SimpleQueue[RunningStep], reports: _Reports) -> None:
    """Waits for steps while the main thread launches the next ones."""
    try:
        while True:
            reports.send(steps.get().wait())
    except BaseException as error:
        reports.fail(error)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
