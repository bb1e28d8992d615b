"""Row tables: what a rank remembers of each running sequence between steps.

Owns the token table (on the device: the sampler writes it, so a decode row needs nothing from the host), the block
tables and the sampling state (on the host: a step gathers its rows' part into its one upload).
Used by input_builder.py and model_runner.py."""

from __future__ import annotations

import numpy as np
import torch

from backend.config import EngineConfig, ModelConfig
from backend.steps import RowSetup, ScheduledRow
from backend.worker.sampling_state import SamplingState


class RowTables:
    """One row per running sequence.

    token_ids     [rows + 1, session_len + 1] int32 on the device; the extra place takes a full sequence's last sample,
                  the extra row is the padding's of a CUDA graph
    block_tables  [rows, blocks of a full sequence] int32 on the host, 0 beyond num_blocks
    num_blocks    [rows] int64 on the host"""

    def __init__(self, model: ModelConfig, engine: EngineConfig, device: torch.device) -> None:
        num_rows = engine.max_batch_size
        self.token_ids = torch.zeros((num_rows + 1, engine.session_len + 1), dtype=torch.int32, device=device)
        self.block_tables = np.zeros((num_rows, -(-engine.session_len // engine.block_size)), np.int32)
        self.num_blocks = np.zeros(num_rows, np.int64)
        self.sampling = SamplingState(num_rows, model.vocab_size)

    def set_row(self, setup: RowSetup) -> None:
        """A sequence takes its row; its token ids come with the step's upload (input_builder)."""
        self.block_tables[setup.row] = 0
        self.num_blocks[setup.row] = 0
        self._append_blocks(setup.row, setup.block_table)
        self.sampling.set_row(setup)

    def append_blocks(self, rows: tuple[ScheduledRow, ...]) -> None:
        """Adds the blocks that the step's rows bring."""
        for row in rows:
            if row.new_blocks:
                self._append_blocks(row.row, row.new_blocks)

    def _append_blocks(self, row: int, blocks: tuple[int, ...]) -> None:
        start = self.num_blocks[row]
        self.block_tables[row, start : start + len(blocks)] = blocks
        self.num_blocks[row] += len(blocks)
