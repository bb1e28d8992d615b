"""Input builder: a StepPlan and the row tables → the tensors of the step.

All index arithmetic happens in numpy on the host and goes over in one upload; only token ids are gathered on the
device, where the sampled ones already are. Used by model_runner.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from backend.forward_batch import ForwardBatch, LayerKv
from backend.memory_plan import blocks_of
from backend.steps import StepPlan
from backend.worker.prompt_logprobs import PromptBatch, prompt_batch
from backend.worker.row_tables import RowTables
from backend.worker.sampling_state import Array, SamplingBatch
from backend.worker.upload import upload


@dataclass(frozen=True, slots=True)
class RowInputs:
    """What every step uploads of its rows, as a CUDA graph or not: numpy arrays on the host, tensors once uploaded.
    Fields that are not explained here are ForwardBatch's.

    block_slots, blocks  flat places in the block tables, and the blocks that are new there
    rows                 [B] int64, the step's rows of the tables
    token_slots          flat places in the token table of the step's T tokens"""

    block_slots: Array
    blocks: Array
    rows: Array
    token_slots: Array
    positions: Array
    slot_mapping: Array
    context_lens: Array


@dataclass(frozen=True, slots=True)
class StepInputs(RowInputs):
    """All that a step uploads.

    setup_slots, setup_tokens  flat places in the token table, and the ids that rows which begin have there
    sampling                   None where no row samples
    prompts                    None where no row wants logprobs of its prompt's tokens"""

    setup_slots: Array
    setup_tokens: Array
    query_start: Array
    logits_indices: Array
    sampling: SamplingBatch | None
    prompts: PromptBatch | None
    num_decodes: int
    max_query_len: int
    max_context_len: int
    sum_context_len: int


class InputBuilder:
    """Turns plans into batches and keeps the row tables up to date on the way."""

    def __init__(self, tables: RowTables, kv_cache: list[LayerKv], device: torch.device) -> None:
        self.tables = tables
        self.kv_cache = kv_cache
        self.block_size = kv_cache[0].block_size
        self.device = device

    def build(self, plan: StepPlan) -> tuple[ForwardBatch, SamplingBatch | None]:
        """The batch of a plan with at least one row, and the sampler's part of it if any row samples."""
        return self.upload(self.arrange(plan))[:2]

    def arrange(self, plan: StepPlan) -> StepInputs:
        """Brings the host's tables up to date and gathers from them what the plan's step needs."""
        block_slots = self.tables.update(plan)
        rows, num_cached, num_new, samples = (np.array(column, np.int64) for column in zip(
            *((row.row, row.num_cached, row.num_new, row.samples) for row in plan.rows), strict=True))
        context_lens = num_cached + num_new
        is_prefill = num_new > 1
        num_decodes = int(is_prefill.argmax()) if is_prefill.any() else len(rows)
        max_context_len = int(context_lens.max())
        width = self.tables.token_ids.shape[1]
        assert max_context_len < width, f"a context of {max_context_len} tokens in tables of {width - 1}"
        assert (self.tables.num_blocks[rows] * self.block_size >= context_lens).all(), "a context without blocks"

        query_start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(num_new, out=query_start[1:])
        if num_decodes == len(rows):
            token_rows, positions = rows, num_cached
        else:
            token_rows = np.repeat(rows, num_new)
            positions = np.arange(query_start[-1]) + np.repeat(num_cached - query_start[:-1], num_new)
        blocks = self.tables.host_block_tables[token_rows, positions // self.block_size].astype(np.int64)
        sampling_rows = np.flatnonzero(samples)
        setup_slots, setup_tokens = self._setup_tokens(plan)
        return StepInputs(
            setup_slots=setup_slots, setup_tokens=setup_tokens, block_slots=block_slots,
            blocks=self.tables.host_block_tables.reshape(-1)[block_slots], rows=rows,
            token_slots=token_rows * width + positions, positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            context_lens=context_lens.astype(np.int32), query_start=query_start.astype(np.int32),
            logits_indices=query_start[1:][sampling_rows] - 1,
            sampling=self._sampling(rows[sampling_rows], context_lens[sampling_rows]), num_decodes=num_decodes,
            prompts=prompt_batch(self.tables.sampling, rows, num_cached, num_new),
            max_query_len=int(num_new[num_decodes:].max(initial=0)), max_context_len=max_context_len,
            sum_context_len=int(context_lens[num_decodes:].sum()))

    def upload(self, inputs: StepInputs) -> tuple[ForwardBatch, SamplingBatch | None, PromptBatch | None]:
        """The batch of a step, on the device; what it brings is in the device's tables from here on."""
        inputs = upload(inputs, self.device)
        flat_token_ids = self.tables.token_ids.view(-1)
        if len(inputs.setup_slots):
            flat_token_ids.index_copy_(0, inputs.setup_slots, inputs.setup_tokens)
        if len(inputs.block_slots):
            self.tables.block_tables.view(-1).index_copy_(0, inputs.block_slots, inputs.blocks)
        num_blocks = blocks_of(inputs.max_context_len, self.block_size)
        batch = ForwardBatch(
            token_ids=flat_token_ids.index_select(0, inputs.token_slots).long(), positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            block_tables=self.tables.block_tables[:, :num_blocks].index_select(0, inputs.rows),
            context_lens=inputs.context_lens, query_start=inputs.query_start, logits_indices=inputs.logits_indices,
            kv_cache=self.kv_cache, num_decodes=inputs.num_decodes, max_query_len=inputs.max_query_len,
            max_context_len=inputs.max_context_len, sum_context_len=inputs.sum_context_len)
        return batch, inputs.sampling, inputs.prompts

    def _sampling(self, rows: np.ndarray, positions: np.ndarray) -> SamplingBatch | None:
        if not rows.size:
            return None
        return self.tables.sampling.batch(rows, positions, rows * self.tables.token_ids.shape[1] + positions)

    def _setup_tokens(self, plan: StepPlan) -> tuple[np.ndarray, np.ndarray]:
        width = self.tables.token_ids.shape[1]
        slots = [setup.row * width + np.arange(len(setup.token_ids)) for setup in plan.setups]
        tokens = [np.array(setup.token_ids, np.int32) for setup in plan.setups]
        return (np.concatenate([np.empty(0, np.int64), *slots]), np.concatenate([np.empty(0, np.int32), *tokens]))
