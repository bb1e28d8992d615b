"""Model runner: one step on one rank, launched without waiting for it.

Owns the order of a step: tables and inputs, model, sampler, copy of the result to the host. Used by worker.py."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from backend.forward_batch import ForwardBatch
from backend.requests import TokenLogprobs
from backend.steps import SampledToken, StepPlan, StepResult
from backend.worker.input_builder import InputBuilder
from backend.worker.row_tables import RowTables
from backend.worker.sampler import SampledTokens, sample


class StepHandle(Protocol):
    """A launched step."""

    def wait(self) -> StepResult:
        """Blocks until the step is done. Raises EngineDeadError if it never will be."""
        ...


class ModelRunner:
    """Runs plans in the order in which they come; on CUDA, `run` returns while the device still works."""

    def __init__(self, model: nn.Module, tables: RowTables, kv_cache: list[tuple[Tensor, Tensor]],
                 device: torch.device) -> None:
        self.model = model
        self.tables = tables
        self.inputs = InputBuilder(tables, kv_cache, device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunningStep:
        """Launches the plan."""
        if not plan.rows:
            return RunningStep(plan, None, self.tables, None)
        batch, sampling = self.inputs.build(plan)
        logits = self.model(batch)
        if sampling is None:
            return RunningStep(plan, None, self.tables, None)
        return RunningStep.start(plan, sample(logits, sampling, self.tables.token_ids), self.tables)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """The logits [R, V] of a batch, without sampling."""
        return self.model(batch)
