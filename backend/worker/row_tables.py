"""Row tables: what a rank remembers of each running sequence between steps.

Owns the token table (on the device: the sampler writes it, so a decode row needs nothing from the host), the block
tables (on the host, where slots are computed from them, and on the device, which is told what changes) and the
sampling state (on the host: a step gathers its rows' part into its one upload).
Used by input_builder.py, model_runner.py and cuda_graph.py."""

from __future__ import annotations

import numpy as np
import torch

from backend.config import EngineConfig, ModelConfig
from backend.memory_plan import blocks_of
from backend.steps import StepPlan
from backend.worker.sampling_state import SamplingState


class RowTables:
    """One row per running sequence; on the device one more, the padding's of a CUDA graph.

    token_ids          [rows + 1, session_len + 1] int32 on the device; the extra place takes a full sequence's last
                       sample
    block_tables       [rows + 1, blocks of a full sequence] int32 on the device, 0 beyond a row's blocks
    host_block_tables  the same without the padding's row, as the step being arranged will see it
    num_blocks         [rows] int64 on the host"""

    def __init__(self, model: ModelConfig, engine: EngineConfig, device: torch.device) -> None:
        num_rows, num_blocks = engine.max_batch_size, blocks_of(engine.session_len, engine.block_size)
        self.token_ids = torch.zeros((num_rows + 1, engine.session_len + 1), dtype=torch.int32, device=device)
        self.block_tables = torch.zeros((num_rows + 1, num_blocks), dtype=torch.int32, device=device)
        self.host_block_tables = np.zeros((num_rows, num_blocks), np.int32)
        self.num_blocks = np.zeros(num_rows, np.int64)
        self.sampling = SamplingState(num_rows, model.vocab_size)

    def update(self, plan: StepPlan) -> np.ndarray:
        """Sequences take their rows and rows get their blocks, on the host. Returns the flat places [C] int64 at which
        the device's block tables differ from here on. Token ids come with the step's upload (input_builder)."""
        width = self.host_block_tables.shape[1]
        changed: list[np.ndarray] = []
        for setup in plan.setups:
            self.host_block_tables[setup.row] = 0
            self.num_blocks[setup.row] = 0
            self._append_blocks(setup.row, setup.block_table)
            self.sampling.set_row(setup)
            changed.append(np.arange(setup.row * width, (setup.row + 1) * width))
        changed += [self._append_blocks(row.row, row.new_blocks) for row in plan.rows if row.new_blocks]
        return np.concatenate(changed) if changed else np.empty(0, np.int64)

    def _append_blocks(self, row: int, blocks: tuple[int, ...]) -> np.ndarray:
        """Returns the flat places of the blocks."""
        width = self.host_block_tables.shape[1]
        start = int(self.num_blocks[row])
        end = start + len(blocks)
        self.host_block_tables[row, start:end] = blocks
        self.num_blocks[row] = end
        return np.arange(row * width + start, row * width + end)
