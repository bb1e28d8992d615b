"""Drives a worker by hand: plans for rows that own fixed blocks, and the logits or tokens that come out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from backend.distributed import TensorParallel
from backend.model_source import ModelSource
from backend.requests import SamplingParams
from backend.steps import RowSetup, SampledToken, ScheduledRow, StepPlan
from backend.worker.worker import Worker

GREEDY = SamplingParams(temperature=0.0)


class StepDriver:
    """A single-rank worker in which each row owns the blocks of a full sequence, in an order of no pattern."""

    def __init__(self, source: ModelSource) -> None:
        self.worker = Worker(source, source.engine, TensorParallel())
        self.blocks_per_row = -(-source.engine.session_len // source.engine.block_size)
        self.num_blocks = self.blocks_per_row * source.engine.max_batch_size
        self.worker.allocate_kv(self.num_blocks)
        self.step = 0

    def setup(self, row: int, token_ids: Sequence[int], sampling: SamplingParams = GREEDY,
              num_prompt: int | None = None, seed: int = 0) -> RowSetup:
        """A row with all of its blocks; num_prompt: all of token_ids by default."""
        own = range(row, self.num_blocks, self.num_blocks // self.blocks_per_row)
        blocks = tuple(reversed(own))
        return RowSetup(row, tuple(token_ids), len(token_ids) if num_prompt is None else num_prompt, blocks, sampling,
                        (2,), seed)

    def plan(self, rows: Sequence[tuple[int, int, int]], setups: Sequence[RowSetup] = (),
             silent: Sequence[int] = ()) -> StepPlan:
        """rows: (row, num_cached, num_new); silent: rows that do not sample."""
        self.step += 1
        return StepPlan(self.step, tuple(setups), tuple(
            ScheduledRow(row, num_cached, num_new, (), row not in silent) for row, num_cached, num_new in rows))

    def logits(self, rows: Sequence[tuple[int, int, int]], setups: Sequence[RowSetup] = ()) -> Tensor:
        """Logits [R, V] of the step, nothing sampled."""
        batch, _ = self.worker.runner.inputs.build(self.plan(rows, setups))
        return self.worker.runner.forward(batch)

    def run(self, rows: Sequence[tuple[int, int, int]], setups: Sequence[RowSetup] = (),
            silent: Sequence[int] = ()) -> tuple[SampledToken, ...]:
        """The tokens that the step sampled."""
        return self.worker.run(self.plan(rows, setups, silent)).wait().tokens

    def generate(self, row: int, prompt: Sequence[int], count: int, sampling: SamplingParams = GREEDY,
                 seed: int = 0) -> list[int]:
        """count tokens of one sequence that runs alone."""
        tokens = self.run([(row, 0, len(prompt))], [self.setup(row, prompt, sampling, seed=seed)])
        found = [tokens[0].token_id]
        while len(found) < count:
            found.append(self.run([(row, len(prompt) + len(found) - 1, 1)])[0].token_id)
        return found
