"""CUDA graphs: decode steps recorded once per batch size and replayed, so that one launch stands for hundreds.

A graph is the model on a ForwardBatch whose tensors stay where they are: a step is one upload into them and a replay.
One graph serves every context length, since the decode kernel reads the lengths on the device and cuts each context
into splits there; only their greatest number is fixed, by session_len. Owns capture, the graphs' tensors, and padding
to the next batch size: padding rows attend to nothing, store into the dummy KV block and sample into the token table's
extra row. Used by model_runner.py."""

from __future__ import annotations

import bisect
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from backend.forward_batch import ForwardBatch
from backend.memory_plan import GIB, graph_batch_sizes
from backend.worker.device import free_memory_bytes
from backend.worker.input_builder import StepInputs
from backend.worker.row_tables import RowTables
from backend.worker.sampling_state import Array
from backend.worker.upload import pack, unpack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """The inputs of B rows, padding included. token_slots and sample_slots are flat places in the token table; the
    others are ForwardBatch's, with block tables as wide as a full sequence's."""

    token_slots: Array
    sample_slots: Array
    positions: Array
    slot_mapping: Array
    context_lens: Array
    block_tables: Array


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """A captured step. `packed` is where its inputs lie; logits [B, V] float32 and token_ids [B] int64 are where its
    results will be, until the next replay of any graph."""

    graph: torch.cuda.CUDAGraph
    packed: Tensor
    logits: Tensor
    token_ids: Tensor


class DecodeGraphs:
    """Captures the decode steps of every batch size, the largest first: the others then fit into its memory."""

    def __init__(self, model: nn.Module, tables: RowTables, kv_cache: list[tuple[Tensor, Tensor]],
                 device: torch.device) -> None:
        self.model = model
        self.tables = tables
        self.kv_cache = kv_cache
        self.device = device
        num_rows, width = tables.token_ids.shape
        self.session_len = width - 1
        self.dummy_token_slot = (num_rows - 1) * width
        num_blocks, block_size = kv_cache[0][0].shape[:2]
        self.dummy_kv_slot = (num_blocks - 1) * block_size
        self.sizes = graph_batch_sizes(num_rows - 1)
        begin, free_bytes = time.perf_counter(), free_memory_bytes(device)
        self.logits = torch.empty((self.sizes[-1], tables.sampling.vocab_size), dtype=torch.float32, device=device)
        self.logits_indices = torch.arange(self.sizes[-1], device=device)
        self.query_start = torch.arange(self.sizes[-1] + 1, dtype=torch.int32, device=device)
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs = {size: self._capture(size) for size in reversed(self.sizes)}
        torch.cuda.synchronize(device)
        logger.info("CUDA graphs: %d batch sizes up to %d, captured in %.1f s, %.2f GiB", len(self.sizes),
                    self.sizes[-1], time.perf_counter() - begin, (free_bytes - free_memory_bytes(device)) / GIB)

    def fits(self, inputs: StepInputs) -> bool:
        """Whether the step is nothing but decodes that sample. Rows that begin have ids to be stored first."""
        return (inputs.max_query_len == 0 and len(inputs.logits_indices) == inputs.num_decodes
                and not len(inputs.setup_slots))

    def replay(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Launches a step that fits. Returns its logits [R, V] and their argmax [R], which the token table then holds
        too; both are overwritten by the next replay."""
        num_rows = inputs.num_decodes
        graph = self.graphs[self.sizes[bisect.bisect_left(self.sizes, num_rows)]]
        graph.packed.copy_(pack(self._padded(inputs, len(graph.token_ids))), non_blocking=True)
        graph.graph.replay()
        return graph.logits[:num_rows], graph.token_ids[:num_rows]

    @torch.inference_mode()
    def _capture(self, size: int) -> DecodeGraph:
        padding = self._padding(size)
        packed = pack(padding).to(self.device)
        inputs = unpack(padding, packed)
        self._step(inputs)  # compiles and loads what it launches, which a capture must not
        graph = torch.cuda.CUDAGraph()
        # Other threads of this process may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits, token_ids = self._step(inputs)
        return DecodeGraph(graph, packed, logits, token_ids)

    def _step(self, inputs: DecodeInputs) -> tuple[Tensor, Tensor]:
        """What is captured. Whatever it reads must live as long as the graphs: these know addresses, not tensors."""
        num_rows = len(inputs.positions)
        token_table = self.tables.token_ids.view(-1)
        batch = ForwardBatch(
            token_ids=token_table.index_select(0, inputs.token_slots).long(), positions=inputs.positions,
            slot_mapping=inputs.slot_mapping, block_tables=inputs.block_tables, context_lens=inputs.context_lens,
            query_start=self.query_start[: num_rows + 1], logits_indices=self.logits_indices[:num_rows],
            kv_cache=self.kv_cache, num_decodes=num_rows, max_query_len=0, max_context_len=self.session_len)
        logits = self.logits[:num_rows].copy_(self.model(batch))
        token_ids = logits.argmax(-1)
        token_table.index_copy_(0, inputs.sample_slots, token_ids.int())
        return logits, token_ids

    def _padding(self, size: int) -> DecodeInputs:
        """The inputs of padding rows alone."""
        token_slots = np.full(size, self.dummy_token_slot, np.int64)
        return DecodeInputs(
            token_slots, sample_slots=token_slots.copy(), positions=np.zeros(size, np.int64),
            slot_mapping=np.full(size, self.dummy_kv_slot, np.int64), context_lens=np.zeros(size, np.int32),
            block_tables=np.zeros((size, self.tables.block_tables.shape[1]), np.int32))

    def _padded(self, inputs: StepInputs, size: int) -> DecodeInputs:
        """The step's inputs, followed by padding rows."""
        padded, num_rows = self._padding(size), inputs.num_decodes
        padded.token_slots[:num_rows] = inputs.token_slots
        padded.sample_slots[:num_rows] = inputs.sampling.slots
        padded.positions[:num_rows] = inputs.positions
        padded.slot_mapping[:num_rows] = inputs.slot_mapping
        padded.context_lens[:num_rows] = inputs.context_lens
        padded.block_tables[:num_rows, : inputs.block_tables.shape[1]] = inputs.block_tables
        return padded
