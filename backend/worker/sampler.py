"""Sampler: logits → the next token of each row, entirely on the device.

Order: repetition, presence and frequency penalty → logit bias, bad words, min_new_tokens → temperature → top_k →
top_p → min_p → draw. Log-probabilities are of the raw distribution, before any of it. Filters cut by value, not by
rank, so equal logits are kept or dropped together and a row's outcome does not depend on how a sort breaks ties.
Used by model_runner.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.worker.noise import gumbel_noise
from backend.worker.sampling_state import Draw, LogitChanges, Penalties, SamplingBatch


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a step sampled, on the device.

    token_ids     [R] int64
    logprobs      [L] float32 of the chosen tokens of the rows that asked, or None
    top_logprobs  [L, X] float32, descending;  top_token_ids  [L, X] int64; None when no row asked for alternatives"""

    token_ids: Tensor
    logprobs: Tensor | None = None
    top_logprobs: Tensor | None = None
    top_token_ids: Tensor | None = None


def sample(logits: Tensor, batch: SamplingBatch, token_table: Tensor) -> SampledTokens:
    """Chooses a token per row and writes it into the token table.

    logits       [R, V] float32, left as they are
    token_table  [rows, positions] int32: read for penalties and bad words, written at batch.slots"""
    scores = logits
    if batch.penalties is not None or batch.changes is not None:
        scores = logits.clone()
    if batch.penalties is not None:
        _penalise(scores, batch.penalties, token_table)
    if batch.changes is not None:
        _change(scores, batch.changes, token_table)
    token_ids = scores.argmax(-1)
    if batch.draw is not None:
        token_ids = torch.where(batch.draw.is_greedy, token_ids, _draw(scores, batch.draw))
    if batch.changes is not None:  # a row in which everything is forbidden falls back to the raw argmax
        token_ids = torch.where(scores.amax(-1) == -torch.inf, logits.argmax(-1), token_ids)
    token_table.view(-1).index_copy_(0, batch.slots, token_ids.to(token_table.dtype))
    if batch.logprobs_index is None:
        return SampledTokens(token_ids)
    return _with_logprobs(logits, token_ids, batch.logprobs_index, batch.num_top_logprobs)


def _penalise(scores: Tensor, penalties: Penalties, token_table: Tensor) -> None:
    tokens = token_table[penalties.rows, : penalties.max_length].long()
    positions = torch.arange(penalties.max_length, device=scores.device)
    is_known = positions < penalties.length[:, None]
    is_completion = is_known & (positions >= penalties.num_prompt[:, None])
    penalised = scores[penalties.index]
    zeros = torch.zeros_like(penalised)
    seen = zeros.scatter_add(1, tokens, is_known.float()) > 0
    counts = zeros.scatter_add_(1, tokens, is_completion.float())
    repetition = penalties.repetition[:, None]
    repeated = torch.where(penalised > 0, penalised / repetition, penalised * repetition)
    penalised = torch.where(seen, repeated, penalised)
    penalised -= penalties.presence[:, None] * (counts > 0) + penalties.frequency[:, None] * counts
    scores[penalties.index] = penalised


def _change(scores: Tensor, changes: LogitChanges, token_table: Tensor) -> None:
    values = changes.values
    prefix_len = changes.prefix.shape[1]
    if prefix_len:
        offsets = torch.arange(-prefix_len, 0, device=scores.device)
        before = changes.positions[:, None] + offsets
        tokens = token_table[changes.rows[:, None], before.clamp(min=0)]
        matches = (changes.prefix < 0) | ((tokens == changes.prefix) & (before >= 0))
        values = values.where(matches.all(1), 0.0)
    scores.index_put_((changes.index, changes.token_ids), values, accumulate=True)


def _draw(scores: Tensor, draw: Draw) -> Tensor:
    """A draw from the filtered distribution of each row by the Gumbel-max trick: scores [R, V] → [R]."""
    # Less the maximum first: a tiny temperature may then send the others to -inf, but never the best one to inf.
    scaled = (scores - scores.amax(-1, keepdim=True)) / draw.temperature[:, None]
    noisy = scaled + gumbel_noise(draw.keys, scores.shape[1])
    floor = _floor(scaled, draw)
    if floor is not None:
        noisy.masked_fill_(scaled < floor, -torch.inf)
    return noisy.argmax(-1)


def _floor(scaled: Tensor, draw: Draw) -> Tensor | None:
    """The least scaled logit that top_k, top_p and min_p keep in each row, [R, 1]; None without any of them.

    scaled  [R, V], each row's maximum is 0"""
    floor = None
    if draw.top_k is not None or draw.top_p is not None:
        ordered = _largest(scaled, draw.max_top_k)
        floor = torch.full_like(ordered[:, :1], -torch.inf)
        if draw.top_k is not None:
            floor = ordered.gather(1, draw.top_k[:, None] - 1)
            ordered = ordered.masked_fill(ordered < floor, -torch.inf)
        if draw.top_p is not None:
            probabilities = ordered.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities  # the mass of what is likelier
            nucleus = ordered.masked_fill(before >= draw.top_p[:, None], torch.inf)
            floor = torch.maximum(floor, nucleus.amin(-1, keepdim=True))
    if draw.min_p is not None:
        min_p_floor = draw.min_p.log()[:, None]  # the likeliest token's scaled logit is 0
        floor = min_p_floor if floor is None else torch.maximum(floor, min_p_floor)
    return floor


def _largest(scaled: Tensor, count: int) -> Tensor:
    """The count largest of each row, descending."""
    if count < scaled.shape[1]:
        return scaled.topk(count).values
    if scaled.device.type == "cpu":  # numpy sorts values alone, in a fifth of the time that torch takes with indices
        return torch.from_numpy(np.sort(scaled.numpy())).flip(-1)
    return scaled.sort(descending=True).values


def _with_logprobs(logits: Tensor, token_ids: Tensor, index: Tensor, num_top: int) -> SampledTokens:
    logprobs = logits[index].log_softmax(-1)
    chosen = logprobs.gather(1, token_ids[index, None]).squeeze(1)
    if not num_top:
        return SampledTokens(token_ids, chosen)
    top = logprobs.topk(min(num_top, logits.shape[1]))
    return SampledTokens(token_ids, chosen, top.values, top.indices)
