"""Sampling state: what each row's request wants, on the host, and the part of a step's inputs that the sampler reads.

A feature costs a step something only when one of its sampling rows uses it: otherwise its field is None. The batch
classes hold numpy arrays here and tensors once uploaded. Used by input_builder.py (makes batches) and sampler.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from backend.steps import RowSetup
from backend.worker.noise import noise_keys

GREEDY_BELOW = 1e-5  # a lower temperature is greedy: float32 could not tell its distribution from one token
_KEEP_ALL = 2.0  # as top_p: a threshold that no cumulated probability reaches, however it was rounded

Array = np.ndarray | Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """How rows are drawn. All [R]; a filter that no row uses is None.

    is_greedy    bool; greedy rows take the argmax whatever is drawn for them
    temperature  float32, > 0
    keys         int64, see noise.py
    top_k        int64 in 1..vocab_size;  top_p, min_p  float32
    max_top_k    the largest top_k, a host integer"""

    is_greedy: Array
    temperature: Array
    keys: Array
    top_k: Array | None
    top_p: Array | None
    min_p: Array | None
    max_top_k: int


@dataclass(frozen=True, slots=True)
class Penalties:
    """The P rows that penalise tokens they have seen.

    index             [P] int64    which row of the logits
    rows              [P] int64    which row of the token table
    num_prompt, length  [P] int64  where the completion begins, and ends
    repetition, presence, frequency  [P] float32
    max_length        the largest length, a host integer"""

    index: Array
    rows: Array
    num_prompt: Array
    length: Array
    repetition: Array
    presence: Array
    frequency: Array
    max_length: int


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """W additions to single logits: biases, and -inf for what must not come next.

    index            [W] int64     which row of the logits
    token_ids        [W] int64     which logit
    values           [W] float32
    rows, positions  [W] int64     where in the token table the next token goes
    prefix           [W, X] int32  what must precede for the change to apply: right-aligned, -1 where anything may"""

    index: Array
    token_ids: Array
    values: Array
    rows: Array
    positions: Array
    prefix: Array


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The R sampling rows of a step, in the plan's order.

    slots             [R] int64: flat places in the token table where the sampled ids go
    logprobs_index    [L] int64: rows of the logits whose log-probabilities are wanted
    num_top_logprobs  the most alternatives that one of them wants, a host integer"""

    slots: Array
    draw: Draw | None
    penalties: Penalties | None
    changes: LogitChanges | None
    logprobs_index: Array | None
    num_top_logprobs: int

    @property
    def is_argmax(self) -> bool:
        """Every row takes the argmax of its logits as they are, and nothing else is asked for."""
        return self.draw is None and self.penalties is None and self.changes is None and self.logprobs_index is None


class SamplingState:
    """Sampling parameters of every row, as host arrays from which a step gathers its rows'."""

    def __init__(self, max_batch_size: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.setups: list[RowSetup | None] = [None] * max_batch_size
        self.seed = np.zeros(max_batch_size, np.uint64)
        self.num_prompt = np.zeros(max_batch_size, np.int64)
        self.is_greedy = np.ones(max_batch_size, np.bool_)
        self.temperature = np.ones(max_batch_size, np.float32)
        self.top_k = np.ones(max_batch_size, np.int64)
        self.top_p = np.full(max_batch_size, _KEEP_ALL, np.float32)
        self.min_p = np.zeros(max_batch_size, np.float32)
        self.repetition = np.ones(max_batch_size, np.float32)
        self.presence = np.zeros(max_batch_size, np.float32)
        self.frequency = np.zeros(max_batch_size, np.float32)
        self.uses_penalties = np.zeros(max_batch_size, np.bool_)
        self.changes_logits = np.zeros(max_batch_size, np.bool_)
        self.num_logprobs = np.full(max_batch_size, -1, np.int64)

    def set_row(self, setup: RowSetup) -> None:
        """A sequence takes its row."""
        row, params = setup.row, setup.sampling
        is_greedy = params.temperature < GREEDY_BELOW
        self.setups[row] = setup
        self.seed[row] = setup.seed
        self.num_prompt[row] = setup.num_prompt_tokens
        self.is_greedy[row] = is_greedy
        self.temperature[row] = 1.0 if is_greedy else params.temperature
        # A greedy row takes the argmax; its filters are such that they cost the step nothing.
        self.top_k[row] = 1 if is_greedy else min(params.top_k or self.vocab_size, self.vocab_size)
        self.top_p[row] = _KEEP_ALL if is_greedy or params.top_p == 1.0 else params.top_p
        self.min_p[row] = 0.0 if is_greedy else params.min_p
        self.repetition[row] = params.repetition_penalty
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.uses_penalties[row] = (params.repetition_penalty != 1.0 or params.presence_penalty != 0.0
                                    or params.frequency_penalty != 0.0)
        self.changes_logits[row] = bool(params.logit_bias or params.bad_words or params.min_new_tokens)
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs

    def batch(self, rows: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> SamplingBatch:
        """What the sampler needs for the step's sampling rows.

        rows, positions [R] int64: their table rows, and where in the sequence the sampled token goes
        slots [R] int64: the same as flat places in the token table"""
        wants_logprobs = np.flatnonzero(self.num_logprobs[rows] >= 0)
        return SamplingBatch(
            slots, self._draw(rows, positions), self._penalties(rows, positions), self._changes(rows, positions),
            wants_logprobs if wants_logprobs.size else None, max(0, int(self.num_logprobs[rows].max())))

    def _draw(self, rows: np.ndarray, positions: np.ndarray) -> Draw | None:
        is_greedy = self.is_greedy[rows]
        if is_greedy.all():
            return None
        top_k, top_p, min_p = self.top_k[rows], self.top_p[rows], self.min_p[rows]
        drawn_top_k = top_k[~is_greedy]
        return Draw(is_greedy, self.temperature[rows], noise_keys(self.seed[rows], positions),
                    top_k if drawn_top_k.min() < self.vocab_size else None,
                    top_p if top_p.min() < _KEEP_ALL else None, min_p if min_p.any() else None, int(drawn_top_k.max()))

    def _penalties(self, rows: np.ndarray, positions: np.ndarray) -> Penalties | None:
        index = np.flatnonzero(self.uses_penalties[rows])
        if not index.size:
            return None
        rows, length = rows[index], positions[index]
        return Penalties(index, rows, self.num_prompt[rows], length, self.repetition[rows], self.presence[rows],
                         self.frequency[rows], int(length.max()))

    def _changes(self, rows: np.ndarray, positions: np.ndarray) -> LogitChanges | None:
        found: list[tuple[int, int, float, tuple[int, ...]]] = []  # row of the logits, token id, value, prefix
        for index in np.flatnonzero(self.changes_logits[rows]).tolist():
            setup = self.setups[rows[index]]
            found += [(index, token, bias, ()) for token, bias in setup.sampling.logit_bias]
            found += [(index, word[-1], -np.inf, word[:-1]) for word in setup.sampling.bad_words]
            if positions[index] - setup.num_prompt_tokens < setup.sampling.min_new_tokens:
                found += [(index, token, -np.inf, ()) for token in setup.end_ids]
        # An id outside the vocabulary cannot come next, so favouring or forbidding it changes nothing.
        found = [change for change in found if 0 <= change[1] < self.vocab_size]
        if not found:
            return None
        index, token_ids, values, prefixes = zip(*found, strict=True)
        prefix = np.full((len(found), max(map(len, prefixes))), -1, np.int32)
        for line, tokens in zip(prefix, prefixes, strict=True):
            line[prefix.shape[1] - len(tokens):] = tokens
        index = np.array(index, np.int64)
        return LogitChanges(index, np.array(token_ids, np.int64), np.array(values, np.float32), rows[index],
                            positions[index], prefix)
