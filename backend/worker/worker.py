"""Worker: one rank. Model and weights first, then, once the number of blocks is decided, the KV cache; then steps.

Two stages because the number of KV blocks is the least that any rank has room for. Used by executor.py (in this
process) and rank_process.py (in one process per rank)."""

from __future__ import annotations

import logging
import time

import torch

from backend.accuracy_report import loss_warnings
from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import EngineDeadError, MillraceError
from backend.forward_batch import LayerKv
from backend.memory_plan import GIB, MemoryPlan, plan_memory, uses_cuda_graphs
from backend.model_source import ModelSource
from backend.models.decoder import Decoder
from backend.steps import StepPlan
from backend.worker.device import device_name, free_memory_bytes, on_device, resolve_device, resolve_dtype, synchronize
from backend.worker.grammar_rows import GrammarRows
from backend.worker.kv_cache import allocate_kv_cache
from backend.worker.model_runner import ModelRunner, RunningStep
from backend.worker.past_kv_scale import read_past_kv_scale
from backend.worker.row_tables import RowTables
from backend.worker.start_log import StartLog
from backend.worker.warm_up import counted_kernels, warm_up
from backend.worker.weight_loader import load_weights

IMPORTS_END_S = time.perf_counter()

logger = logging.getLogger(__name__)


class Worker:
    """Plans this rank's memory, then loads its part of the model.

    Raises CapacityError before anything is loaded where it would not fit, ConfigError or CheckpointError where the
    model cannot be run like this.
    kv_scale  this rank's calibrated scales of the KV cache, where these are in use"""

    def __init__(self, source: ModelSource, engine: EngineConfig, tp: TensorParallel) -> None:
        self.model_config = source.model
        self.engine = engine
        self.start = StartLog(IMPORTS_END_S, is_silent=tp.rank > 0)
        with self.start.phase("device") as facts:
            self.device = resolve_device(engine, tp.rank)
            self.dtype = resolve_dtype(engine, source.model, self.device)
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            self.kv_scale = read_past_kv_scale(source, engine, tp)
            plan = self._plan_memory(weights_loaded=False)
            facts.append(device_name(self.device))
        if tp.rank == 0:
            logger.info("%s on %s%s: %s", source.model.model_name, self.device, f" x {tp.size}" * (tp.size > 1), plan)
            for warning in loss_warnings(source.path, plan.kv_format.value):
                logger.warning("%s", warning)
        with self.start.phase("weights") as facts:
            self.model = Decoder(source.model, engine, tp)
            num_bytes = load_weights(self.model, source, self.dtype, self.device, show_progress=tp.rank == 0)
            facts.append(f"{num_bytes / GIB:.2f} GiB read")
        self.tables = RowTables(source.model, engine, self.device)
        self.grammars = GrammarRows(source.tokenizer_dir, source.model.vocab_size, source.model.eos_token_ids,
                                    engine.max_batch_size, is_pinned=self.device.type == "cuda")
        self.runner: ModelRunner | None = None

    def num_blocks(self) -> int:
        """KV blocks for which this rank has room, now that the weights are there. Raises CapacityError."""
        return self._plan_memory(weights_loaded=True).num_blocks

    def allocate_kv(self, num_blocks: int) -> None:
        """Allocates the KV cache and gets ready for steps: on a GPU, what CUDA graphs and usual steps launch is
        compiled when this returns. Without graphs, steps of many decode rows compile at their first use."""
        with on_device(self.device):
            with self.start.phase("KV cache"):
                kv_cache = allocate_kv_cache(self.model_config, self.engine, num_blocks, self.dtype, self.device,
                                             self.kv_scale)
                synchronize(self.device)
            if self.device.type == "cuda":
                self._get_gpu_ready(kv_cache)
            else:
                self.runner = ModelRunner(self.model, self.tables, self.grammars, kv_cache, self.device,
                                          use_graphs=False)
        self.start.log_ready()

    def _get_gpu_ready(self, kv_cache: list[LayerKv]) -> None:
        with counted_kernels() as kernels:
            with self.start.phase("graphs") as facts:
                use_graphs = uses_cuda_graphs(self.engine)
                self.runner = ModelRunner(self.model, self.tables, self.grammars, kv_cache, self.device,
                                          use_graphs)
                facts.append(str(self.runner.graphs or "none"))
            with self.start.phase("warm-up") as facts:
                warm_up(self.runner.run, self.engine)
                facts.append(f"{kernels.num_compiled} Triton kernels compiled, {kernels.num_cached} from its cache")

    def run(self, plan: StepPlan) -> RunningStep:
        """Launches a step."""
        assert self.runner is not None, "run before allocate_kv"
        with on_device(self.device):  # whatever thread this is, and whichever device it uses otherwise
            return self.runner.run(plan)

    def _plan_memory(self, weights_loaded: bool) -> MemoryPlan:
        on_cpu = self.device.type == "cpu"
        num_sharing = self.engine.tp if on_cpu else 1  # ranks on CPUs share the host's memory
        free_bytes = free_memory_bytes(self.device) // num_sharing
        return plan_memory(self.model_config, self.engine, str(self.dtype).removeprefix("torch."), free_bytes,
                           has_kv_scales=self.kv_scale is not None, weights_loaded=weights_loaded, on_cpu=on_cpu)


def rank_error(error: BaseException, rank: int) -> MillraceError:
    """What ended a rank, as one line; an error of ours stays itself."""
    if isinstance(error, MillraceError):
        return error
    text = " ".join(str(error).split()) or "no message"
    return EngineDeadError(f"rank {rank}: {type(error).__name__}: {text[:300]}")
