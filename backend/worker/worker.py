"""Worker: one rank. Model and weights first, then, once the number of blocks is decided, the KV cache; then steps.

Two stages because the second needs a number that only the first can measure. Used by executor.py (in this process)
and rank_process.py (in one process per rank)."""

from __future__ import annotations

import torch

from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import EngineDeadError, MillraceError
from backend.model_source import ModelSource
from backend.models.decoder import Decoder
from backend.steps import StepPlan
from backend.worker.device import free_memory_bytes, resolve_device, resolve_dtype
from backend.worker.kv_cache import allocate_kv_cache
from backend.worker.model_runner import ModelRunner, RunningStep
from backend.worker.row_tables import RowTables
from backend.worker.weight_loader import load_weights


class Worker:
    """Loads this rank's part of the model. Raises ConfigError or CheckpointError where that does not work."""

    def __init__(self, source: ModelSource, engine: EngineConfig, tp: TensorParallel) -> None:
        self.model_config = source.model
        self.engine = engine
        self.device = resolve_device(engine, tp.rank)
        self.dtype = resolve_dtype(engine, source.model, self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.model = Decoder(source.model, engine, tp)
        load_weights(self.model, source, self.dtype, self.device)
        self.tables = RowTables(source.model, engine, self.device)
        self.runner: ModelRunner | None = None

    def free_bytes(self) -> int:
        """Memory that is left on this rank's device."""
        return free_memory_bytes(self.device)

    def allocate_kv(self, num_blocks: int) -> None:
        """Allocates the KV cache and gets ready for steps."""
        kv_cache = allocate_kv_cache(self.model_config, self.engine, num_blocks, self.dtype, self.device)
        self.runner = ModelRunner(self.model, self.tables, kv_cache, self.device)

    def run(self, plan: StepPlan) -> RunningStep:
        """Launches a step."""
        assert self.runner is not None, "run before allocate_kv"
        return self.runner.run(plan)


def rank_error(error: BaseException, rank: int) -> MillraceError:
    """What ended a rank, as one line; an error of ours stays itself."""
    if isinstance(error, MillraceError):
        return error
    text = " ".join(str(error).split()) or "no message"
    return EngineDeadError(f"rank {rank}: {type(error).__name__}: {text[:300]}")
