"""Model runner: one step on one rank, launched without waiting for it.

Owns the order of a step: inputs, model or its CUDA graph, masks of grammars, sampler, copy of the result to the host.
Used by worker."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from backend.forward_batch import ForwardBatch, LayerKv
from backend.requests import TokenLogprobs
from backend.steps import GrammarEnd, SampledToken, StepPlan, StepResult
from backend.worker.cuda_graph import DecodeGraphs
from backend.worker.grammar_rows import GrammarRows
from backend.worker.input_builder import InputBuilder, StepInputs
from backend.worker.prompt_logprobs import PromptScores, RunningPrompts, score_prompts
from backend.worker.row_tables import RowTables
from backend.worker.sampler import SampledTokens, sample
from backend.worker.sampling_state import SamplingBatch
from backend.worker.upload import upload


class ModelRunner:
    """Runs plans in the order in which they come; on CUDA, `run` returns while the device still works.

    use_graphs  captures CUDA graphs now, and replays them for the steps that they fit"""

    def __init__(self, model: nn.Module, tables: RowTables, grammars: GrammarRows, kv_cache: list[LayerKv],
                 device: torch.device, use_graphs: bool) -> None:
        self.model = model
        self.tables = tables
        self.grammars = grammars
        self.device = device
        self.inputs = InputBuilder(tables, kv_cache, device)
        self.graphs = DecodeGraphs(model, tables, kv_cache, device) if use_graphs else None

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunningStep:
        """Launches the plan. Rows are set up by the plan in which they first run.

        Where a row follows a grammar, the tokens of the steps before are waited for, while the device computes."""
        assert plan.rows, "a plan without rows"
        self.grammars.compile_ahead(plan.grammars)
        for setup in plan.setups:
            self.grammars.set_row(setup)
        inputs = self.inputs.arrange(plan)
        fits_graph = self.graphs is not None and self.graphs.fits(inputs)
        rows = tuple(row.row for row in plan.rows if row.samples)
        launched = self._replay(inputs) if fits_graph else self._launch(inputs)
        prompts = launched.prompts
        if inputs.sampling is None and prompts is None:
            return RunningStep(plan.step, (), (), None, None, None, grammars=self.grammars.take_compiled())
        sampled, grammar_ends = self._sample(launched, inputs.sampling, rows)
        # Taken now: a row may belong to another sequence when the result is read.
        num_logprobs = tuple(self.tables.sampling.num_logprobs[list(rows)].tolist())
        on_host = None if sampled is None else _to_host(sampled)
        if prompts is not None:
            prompts = replace(prompts, scores=_to_host(prompts.scores))
        running = RunningStep(plan.step, rows, num_logprobs, on_host, prompts, self._record(), grammar_ends,
                              self.grammars.take_compiled())
        self.grammars.will_sample(running)
        return running

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """The logits [R, V] of a batch, without sampling."""
        return self.model(batch)

    def _launch(self, inputs: StepInputs) -> _Launched:
        """Kernel by kernel."""
        batch, sampling, prompts = self.inputs.upload(inputs)
        if prompts is None:
            logits, running = self.model(batch), None
        else:
            hidden = self.model.hidden(replace(batch, logits_indices=batch.positions))  # as many: of all tokens
            running = RunningPrompts(prompts.chunks, score_prompts(self.model, hidden, prompts))
            logits = self.model.output(hidden[batch.logits_indices], self.model.norm)
        return _Launched(logits, sampling, running)

    def _record(self) -> torch.cuda.Event | None:
        """An event after what has been launched so far; None where there is nothing to wait for."""
        if self.device.type != "cuda":
            return None
        done = torch.cuda.Event()
        done.record()
        return done

    def _replay(self, inputs: StepInputs) -> _Launched:
        """As a CUDA graph, which samples too, unless a row wants what is not in it."""
        logits, token_ids = self.graphs.replay(inputs)
        if inputs.sampling.is_plain:
            return _Launched(logits, None, None, SampledTokens(token_ids))
        return _Launched(logits, upload(inputs.sampling, self.device), None)

    def _sample(self, launched: _Launched, sampling: SamplingBatch | None,
                rows: tuple[int, ...]) -> tuple[SampledTokens | None, tuple[GrammarEnd | None, ...]]:
        """What the step samples, and where a row's grammar had ended before it; sampling: the host's."""
        if launched.sampling is None:
            return launched.sampled, ()
        if sampling.masked is None:
            return sample(launched.logits, launched.sampling, self.tables.token_ids), ()
        masked = sampling.masked.tolist()
        mask = self.grammars.mask([rows[index] for index in masked])
        bits = mask.bits.to(self.device, non_blocking=True)
        ends: list[GrammarEnd | None] = [None] * len(rows)
        for index, end in zip(masked, mask.ends, strict=True):
            ends[index] = end
        return sample(launched.logits, launched.sampling, self.tables.token_ids, bits), tuple(ends)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A forward pass that the device works on.

    sampling  what is to be sampled of the logits, on the device; None where nothing is, or a graph has: sampled
    prompts   logprobs of prompts, where wanted"""

    logits: Tensor
    sampling: SamplingBatch | None
    prompts: RunningPrompts | None
    sampled: SampledTokens | None = None


@dataclass(frozen=True, slots=True)
class RunningStep:
    """A launched step; its result is on its way to the host.

    rows, num_logprobs  per sampled token: its row, and how many alternatives were asked for (-1: no logprobs)
    prompts             logprobs of prompts, where wanted
    done                the event after the copy; None where there is nothing to wait for
    grammar_ends        per sampled token where rows follow grammars, see SampledToken; else empty
    grammars            see StepResult"""

    step: int
    rows: tuple[int, ...]
    num_logprobs: tuple[int, ...]
    sampled: SampledTokens | None
    prompts: RunningPrompts | None
    done: torch.cuda.Event | None
    grammar_ends: tuple[GrammarEnd | None, ...] = ()
    grammars: tuple[str, ...] = ()

    def token_ids(self) -> list[int]:
        """The sampled tokens alone; blocks until they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.sampled.token_ids.tolist()

    def wait(self) -> StepResult:
        """Blocks until the step is done."""
        if self.done is not None:
            self.done.synchronize()
        prompts = () if self.prompts is None else self.prompts.results()
        if self.sampled is None:
            return StepResult(self.step, (), prompts, self.grammars)
        token_ids = self.sampled.token_ids.tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if self.sampled.logprobs is not None:
            asked = [index for index, count in enumerate(self.num_logprobs) if count >= 0]
            for line, index in enumerate(asked):
                logprobs[index] = self._logprobs(line, token_ids[index], self.num_logprobs[index])
        ends = self.grammar_ends or (None,) * len(token_ids)
        return StepResult(self.step, tuple(map(SampledToken, self.rows, token_ids, logprobs, ends)), prompts,
                          self.grammars)

    def _logprobs(self, line: int, token_id: int, count: int) -> TokenLogprobs:
        top: tuple[tuple[int, float], ...] = ()
        if count:
            top = tuple(zip(self.sampled.top_token_ids[line, :count].tolist(),
                            self.sampled.top_logprobs[line, :count].tolist(), strict=True))
        return TokenLogprobs(token_id, float(self.sampled.logprobs[line]), top)


_OnDevice = TypeVar("_OnDevice", SampledTokens, PromptScores)


def _to_host(results: _OnDevice) -> _OnDevice:
    """The same in the host's memory once the device has got there."""
    members = {field.name: getattr(results, field.name) for field in fields(results)}
    return type(results)(**{name: member if member is None or not member.is_cuda else _pinned_copy(member)
                            for name, member in members.items()})


def _pinned_copy(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that nobody waits for: pageable memory would make it a blocking one."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
