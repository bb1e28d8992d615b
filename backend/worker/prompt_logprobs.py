"""Prompt logprobs: how likely each token of a prompt was after those before it, for rows that want to know.

The logits of a whole prompt would be larger than anything else a step holds, so they are made and forgotten a slice
at a time. Used by input_builder.py (which tokens), model_runner.py (their scores)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.models.decoder import Decoder
from backend.requests import TokenLogprobs
from backend.steps import PromptLogprobs
from backend.worker.sampling_state import Array, SamplingState

LOGITS_BYTES = 2**25  # of a slice; with its softmax and the copies of both it stays within the plan's runtime share


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """The part of a row's prompt that a step scores: tokens [first, first + len(token_ids)), of which the step computes
    the tokens before. num_top: alternatives wanted."""

    row: int
    first: int
    token_ids: tuple[int, ...]
    num_top: int


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """P prompt tokens to be scored.

    index      [P] int64: which of the step's tokens comes before each
    token_ids  [P] int64: the tokens themselves
    chunks     the same on the host, in the same order"""

    index: Array
    token_ids: Array
    chunks: tuple[PromptChunk, ...]

    @property
    def num_top(self) -> int:
        """The most alternatives that a row wants."""
        return max(chunk.num_top for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class PromptScores:
    """logprobs [P] float32; top_logprobs [P, X] float32, descending, and top_token_ids [P, X] int64, or None."""

    logprobs: Tensor
    top_logprobs: Tensor | None
    top_token_ids: Tensor | None


@dataclass(frozen=True, slots=True)
class RunningPrompts:
    """Scores that are on their way to the host."""

    chunks: tuple[PromptChunk, ...]
    scores: PromptScores

    def results(self) -> tuple[PromptLogprobs, ...]:
        """For the engine, once the scores are there."""
        logprobs = self.scores.logprobs.tolist()
        tops: list[list[tuple[int, float]]] = [[]] * len(logprobs)
        if self.scores.top_logprobs is not None:
            pairs = zip(self.scores.top_token_ids.tolist(), self.scores.top_logprobs.tolist(), strict=True)
            tops = [list(zip(*pair, strict=True)) for pair in pairs]
        found, begin = [], 0
        for chunk in self.chunks:
            end = begin + len(chunk.token_ids)
            scored = zip(chunk.token_ids, logprobs[begin:end], tops[begin:end], strict=True)
            found.append(PromptLogprobs(chunk.row, chunk.first, tuple(
                TokenLogprobs(token_id, logprob, tuple(top[:chunk.num_top])) for token_id, logprob, top in scored)))
            begin = end
        return tuple(found)


def prompt_batch(state: SamplingState, rows: np.ndarray, num_cached: np.ndarray,
                 num_new: np.ndarray) -> PromptBatch | None:
    """The prompt tokens that a step scores, or None; rows, num_cached and num_new [B] int64 as in its plan."""
    wanting = np.flatnonzero(state.num_prompt_logprobs[rows] >= 0)
    if not wanting.size:
        return None
    starts = np.cumsum(num_new) - num_new
    chunks, index = [], []
    for line in wanting.tolist():
        row, first = int(rows[line]), int(num_cached[line]) + 1
        setup = state.setups[row]
        token_ids = setup.token_ids[first:min(first + int(num_new[line]), setup.num_prompt_tokens)]
        if token_ids:
            chunks.append(PromptChunk(row, first, token_ids, int(state.num_prompt_logprobs[row])))
            index.append(np.arange(starts[line], starts[line] + len(token_ids)))
    if not chunks:
        return None
    token_ids = np.array([token_id for chunk in chunks for token_id in chunk.token_ids], np.int64)
    return PromptBatch(np.concatenate(index), token_ids, tuple(chunks))


def score_prompts(model: Decoder, hidden: Tensor, batch: PromptBatch) -> PromptScores:
    """hidden [T, hidden_size] of all the step's tokens, before the last norm."""
    vocab_size = model.output.vocab_size
    size, num_top = max(1, LOGITS_BYTES // (4 * vocab_size)), min(batch.num_top, vocab_size)
    chosen, tops = [], []
    for index, token_ids in zip(batch.index.split(size), batch.token_ids.split(size), strict=True):
        logprobs = model.output(hidden[index], model.norm).log_softmax(-1)
        chosen.append(logprobs.gather(1, token_ids[:, None]).squeeze(1))
        if num_top:
            tops.append(logprobs.topk(num_top))
    return PromptScores(torch.cat(chosen), torch.cat([top.values for top in tops]) if tops else None,
                        torch.cat([top.indices for top in tops]) if tops else None)
