"""CUDA graphs: decode steps recorded once per batch size and replayed, so that one launch stands for hundreds.

A graph is the model on a ForwardBatch whose tensors stay where they are, then penalties and draws: a step is one upload
into them and a replay. Rows that want nothing of the latter are greedy and without penalties, which costs next to
nothing; what is rarer (logit changes, logprobs) is sampled after the replay, from the graph's logits.
One graph serves every context length, since the decode kernel reads the lengths on the device and cuts each context
into splits there; only their greatest number is fixed, by session_len. Owns capture, the graphs' tensors, and padding
to the next batch size: padding rows attend to nothing, store nothing and sample into the token table's extra row.
Used by model_runner.py."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from backend.forward_batch import ForwardBatch, LayerKv
from backend.memory_plan import GIB, graph_batch_sizes
from backend.worker.device import free_memory_bytes
from backend.worker.input_builder import RowInputs, StepInputs
from backend.worker.row_tables import RowTables
from backend.worker.sampler import draw, penalise
from backend.worker.sampling_state import Array, Draw, Penalties
from backend.worker.upload import pack, unpack


@dataclass(frozen=True, slots=True)
class DecodeInputs(RowInputs):
    """The inputs of B rows, padding included, with one new block per row at most, and what is needed to sample.
    sample_slots are flat places in the token table."""

    sample_slots: Array
    draw: Draw
    penalties: Penalties


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

    def __init__(self, model: nn.Module, tables: RowTables, kv_cache: list[LayerKv],
                 device: torch.device) -> None:
        self.model = model
        self.tables = tables
        self.kv_cache = kv_cache
        self.device = device
        num_rows, width = tables.token_ids.shape
        self.session_len = width - 1
        self.dummy_row = num_rows - 1
        self.dummy_kv_slot = (kv_cache[0].num_blocks - 1) * kv_cache[0].block_size
        self.sizes = graph_batch_sizes(num_rows - 1)
        free_bytes = free_memory_bytes(device)
        self.counts = torch.zeros((self.sizes[-1], tables.sampling.vocab_size), dtype=torch.int32, device=device)
        self.logits_indices = torch.arange(self.sizes[-1], device=device)
        self.query_start = torch.arange(self.sizes[-1] + 1, dtype=torch.int32, device=device)
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # one for all: memory of the pool is not shared between streams
        self.graphs = {size: self._capture(size) for size in reversed(self.sizes)}
        torch.cuda.synchronize(device)
        self.num_bytes = free_bytes - free_memory_bytes(device)

    def __str__(self) -> str:
        return f"{len(self.sizes)} batch sizes up to {self.sizes[-1]}, {self.num_bytes / GIB:.2f} GiB"

    def fits(self, inputs: StepInputs) -> bool:
        """Whether the step is nothing but decodes that sample. Rows that begin have ids to be stored first."""
        return (inputs.max_query_len == 0 and len(inputs.logits_indices) == inputs.num_decodes
                and inputs.prompts is None and not len(inputs.setup_slots) and len(inputs.blocks) <= inputs.num_decodes)

    def replay(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Launches a step that fits. Returns its logits [R, V] and the tokens [R] that the token table then holds too;
        both are overwritten by the next replay.

        Where the step's sampling is plain, these are its tokens, and penalties have lowered the logits. Otherwise they
        are the likeliest ones, the logits are as the model gave them, and the step is yet to be sampled."""
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
        with torch.cuda.graph(graph, self.pool, self.stream, "thread_local"):
            logits, token_ids = self._step(inputs)
        return DecodeGraph(graph, packed, _borrowed(logits), token_ids)

    def _step(self, inputs: DecodeInputs) -> tuple[Tensor, Tensor]:
        """What is captured. Whatever it reads must live as long as the graphs: these know addresses, not tensors."""
        num_rows = len(inputs.positions)
        tables = self.tables
        tables.block_tables.view(-1).index_copy_(0, inputs.block_slots, inputs.blocks)
        batch = ForwardBatch(
            token_ids=tables.token_ids.view(-1).index_select(0, inputs.token_slots).long(), positions=inputs.positions,
            slot_mapping=inputs.slot_mapping, block_tables=tables.block_tables.index_select(0, inputs.rows),
            context_lens=inputs.context_lens, query_start=self.query_start[: num_rows + 1],
            logits_indices=self.logits_indices[:num_rows], kv_cache=self.kv_cache, num_decodes=num_rows,
            max_query_len=0, max_context_len=self.session_len, sum_context_len=0)
        logits = self.model(batch)
        penalise(logits, inputs.penalties, tables.token_ids, self.counts)
        return logits, draw(logits, inputs.draw, tables.token_ids, inputs.sample_slots)

    def _padding(self, size: int) -> DecodeInputs:
        """The inputs of padding rows alone."""
        rows = np.full(size, self.dummy_row, np.int64)
        token_slots = rows * (self.session_len + 1)
        return DecodeInputs(
            block_slots=rows * self.tables.block_tables.shape[1], blocks=np.zeros(size, np.int32), rows=rows,
            token_slots=token_slots, positions=np.zeros(size, np.int64),
            slot_mapping=np.full(size, self.dummy_kv_slot, np.int64), context_lens=np.zeros(size, np.int32),
            sample_slots=token_slots.copy(), draw=Draw.greedy(size), penalties=Penalties.none(size))

    def _padded(self, inputs: StepInputs, size: int) -> DecodeInputs:
        """The step's inputs, followed by padding rows."""
        padded, sampling, num_rows = self._padding(size), inputs.sampling, inputs.num_decodes
        _fill(padded, inputs, RowInputs)
        padded.sample_slots[:num_rows] = sampling.slots
        if sampling.is_plain and sampling.draw is not None:
            _fill(padded.draw, sampling.draw, Draw)
        if sampling.is_plain and sampling.penalties is not None:
            _fill(padded.penalties, sampling.penalties, Penalties)
        return padded


def _fill(padded: object, values: object, kind: type) -> None:
    """The beginning of each array that a dataclass of this kind has."""
    for field in fields(kind):
        given = getattr(values, field.name)
        getattr(padded, field.name)[: len(given)] = given


class _CudaArray:
    """Memory of a tensor, without keeping it."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {"shape": tuple(tensor.shape), "typestr": "<f4", "version": 2,
                                         "data": (tensor.data_ptr(), False)}


def _borrowed(logits: Tensor) -> Tensor:
    """The same memory as a captured float32 tensor's, which the graphs' pool is then free to give to other graphs.

    It holds the result from a replay to the next one, so a copy to a place shared by all graphs would gain nothing
    (45 us for [256, 92544]); keeping the tensor itself would keep memory for the logits of every graph."""
    assert logits.dtype == torch.float32 and logits.is_contiguous()
    return torch.as_tensor(_CudaArray(logits), device=logits.device)
