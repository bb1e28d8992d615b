"""Sampler: logits → the next token of each row, entirely on the device.

Order: grammar → repetition, presence and frequency penalty → logit bias, bad words, min_new_tokens → temperature →
top_k → top_p → min_p → draw. Log-probabilities are of the raw distribution, before any of it. Filters cut by value,
not by rank, so equal logits are kept or dropped together and a row's outcome does not depend on how a sort breaks ties.
Masks, penalties and draws are kernels, the last two in CUDA graphs too; the rest, which is rare, is torch.
Used by model_runner.py and cuda_graph.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.kernels import dispatch as kernels
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


def sample(logits: Tensor, batch: SamplingBatch, token_table: Tensor, mask: Tensor | None = None) -> SampledTokens:
    """Chooses a token per row and writes it into the token table.

    logits       [R, V] float32, left as they are
    token_table  [rows, positions] int32: read for penalties and bad words, written at batch.slots
    mask         [C, ceil(V / 32)] int32: the tokens that each of batch.masked may take, see worker/grammar_rows.py"""
    scores = logits
    if batch.penalties is not None or batch.changes is not None or batch.masked is not None:
        scores = logits.clone()
    if batch.masked is not None:
        kernels.mask_tokens(scores, batch.masked, mask)
    if batch.penalties is not None:
        counts = torch.zeros((len(batch.penalties.index), logits.shape[1]), dtype=torch.int32, device=logits.device)
        penalise(scores, batch.penalties, token_table, counts)
    if batch.changes is not None:
        allowed = scores.clone() if batch.masked is not None else logits
        _change(scores, batch.changes, token_table)
        _forbid_no_row_everything(scores, allowed)
    if batch.draw is None:
        token_ids = scores.argmax(-1)
        token_table.view(-1).index_copy_(0, batch.slots, token_ids.int())
    else:
        token_ids = draw(scores, batch.draw, token_table, batch.slots)
    if batch.logprobs_index is None:
        return SampledTokens(token_ids)
    return _with_logprobs(logits, token_ids, batch.logprobs_index, batch.num_top_logprobs)


def penalise(logits: Tensor, penalties: Penalties, token_table: Tensor, counts: Tensor) -> None:
    """See sampling_reference.penalise; in place. counts [P or more, V] int32 is zero before and after."""
    kernels.penalise(logits, token_table, counts, penalties.index, penalties.rows, penalties.num_prompt,
                     penalties.length, penalties.repetition, penalties.presence, penalties.frequency)


def draw(logits: Tensor, draws: Draw, token_table: Tensor, slots: Tensor) -> Tensor:
    """See sampling_reference.draw: token ids [R] int64, written into the token table at slots too."""
    return kernels.draw(logits, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.keys, token_table,
                        slots)


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


def _forbid_no_row_everything(scores: Tensor, allowed: Tensor) -> None:
    """A row in which everything is forbidden may take the likeliest of the tokens that its grammar allows."""
    is_forbidden = scores.amax(-1, keepdim=True) == -torch.inf
    likeliest = allowed.argmax(-1, keepdim=True)
    scores.scatter_(1, likeliest, scores.gather(1, likeliest).masked_fill_(is_forbidden, 0.0))


def _with_logprobs(logits: Tensor, token_ids: Tensor, index: Tensor, num_top: int) -> SampledTokens:
    logprobs = logits[index].log_softmax(-1)
    chosen = logprobs.gather(1, token_ids[index, None]).squeeze(1)
    if not num_top:
        return SampledTokens(token_ids, chosen)
    top = logprobs.topk(min(num_top, logits.shape[1]))
    return SampledTokens(token_ids, chosen, top.values, top.indices)
