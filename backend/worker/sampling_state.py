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

Array = np.ndarray | Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """How rows are drawn, all [R]: see kernels/sampling_reference.draw.

    temperature  float32; 0 for greedy rows, whatever the other fields say
    top_k        int32 in 1..vocab_size
    top_p, min_p float32
    keys         int64, see noise.py"""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    keys: Array

    @classmethod
    def greedy(cls, num_rows: int) -> Draw:
        """Rows that take the likeliest token."""
        return cls(np.zeros(num_rows, np.float32), np.ones(num_rows, np.int32), np.ones(num_rows, np.float32),
                   np.zeros(num_rows, np.float32), np.zeros(num_rows, np.int64))


@dataclass(frozen=True, slots=True)
class Penalties:
    """P rows that penalise tokens they have seen, all [P]: see kernels/sampling_reference.penalise.

    index               int64    which row of the logits
    rows                int64    which row of the token table
    num_prompt, length  int32    where the completion begins, and ends; length 0: nothing is penalised
    repetition, presence, frequency  float32"""

    index: Array
    rows: Array
    num_prompt: Array
    length: Array
    repetition: Array
    presence: Array
    frequency: Array

    @classmethod
    def none(cls, num_rows: int) -> Penalties:
        """Entries that penalise nothing."""
        integers, small, floats = (np.zeros(num_rows, dtype) for dtype in (np.int64, np.int32, np.float32))
        return cls(integers, integers.copy(), small, small.copy(), floats, floats.copy(), floats.copy())


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
    masked            [C] int64: rows of the logits that follow a grammar
    logprobs_index    [L] int64: rows of the logits whose log-probabilities are wanted
    num_top_logprobs  the most alternatives that one of them wants, a host integer"""

    slots: Array
    draw: Draw | None
    penalties: Penalties | None
    changes: LogitChanges | None
    masked: Array | None
    logprobs_index: Array | None
    num_top_logprobs: int

    @property
    def is_plain(self) -> bool:
        """Nothing but draws and penalties is asked for."""
        return self.changes is None and self.masked is None and self.logprobs_index is None


class SamplingState:
    """Sampling parameters of every row, as host arrays from which a step gathers its rows'."""

    def __init__(self, max_batch_size: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.setups: list[RowSetup | None] = [None] * max_batch_size
        self.seed = np.zeros(max_batch_size, np.uint64)
        self.num_prompt = np.zeros(max_batch_size, np.int32)
        self.temperature = np.zeros(max_batch_size, np.float32)
        self.top_k = np.ones(max_batch_size, np.int32)
        self.top_p = np.ones(max_batch_size, np.float32)
        self.min_p = np.zeros(max_batch_size, np.float32)
        self.repetition = np.ones(max_batch_size, np.float32)
        self.presence = np.zeros(max_batch_size, np.float32)
        self.frequency = np.zeros(max_batch_size, np.float32)
        self.uses_penalties = np.zeros(max_batch_size, np.bool_)
        self.changes_logits = np.zeros(max_batch_size, np.bool_)
        self.has_grammar = np.zeros(max_batch_size, np.bool_)
        self.num_logprobs = np.full(max_batch_size, -1, np.int64)
        self.num_prompt_logprobs = np.full(max_batch_size, -1, np.int64)

    def set_row(self, setup: RowSetup) -> None:
        """A sequence takes its row."""
        row, params = setup.row, setup.sampling
        self.setups[row] = setup
        self.seed[row] = setup.seed
        self.num_prompt[row] = setup.num_prompt_tokens
        self.temperature[row] = 0.0 if params.temperature < GREEDY_BELOW else params.temperature
        self.top_k[row] = min(params.top_k or self.vocab_size, self.vocab_size)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.repetition[row] = params.repetition_penalty
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.uses_penalties[row] = (params.repetition_penalty != 1.0 or params.presence_penalty != 0.0
                                    or params.frequency_penalty != 0.0)
        self.changes_logits[row] = bool(params.logit_bias or params.bad_words or params.min_new_tokens)
        self.has_grammar[row] = params.grammar is not None
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.num_prompt_logprobs[row] = -1 if setup.prompt_logprobs is None else setup.prompt_logprobs

    def batch(self, rows: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> SamplingBatch:
        """What the sampler needs for the step's sampling rows.

        rows, positions [R] int64: their table rows, and where in the sequence the sampled token goes
        slots [R] int64: the same as flat places in the token table"""
        masked = np.flatnonzero(self.has_grammar[rows])
        wants_logprobs = np.flatnonzero(self.num_logprobs[rows] >= 0)
        return SamplingBatch(
            slots, self._draw(rows, positions), self._penalties(rows, positions), self._changes(rows, positions),
            masked if masked.size else None,
            wants_logprobs if wants_logprobs.size else None, max(0, int(self.num_logprobs[rows].max())))

    def _draw(self, rows: np.ndarray, positions: np.ndarray) -> Draw | None:
        temperature = self.temperature[rows]
        if not temperature.any():
            return None
        return Draw(temperature, self.top_k[rows], self.top_p[rows], self.min_p[rows],
                    noise_keys(self.seed[rows], positions))

    def _penalties(self, rows: np.ndarray, positions: np.ndarray) -> Penalties | None:
        index = np.flatnonzero(self.uses_penalties[rows])
        if not index.size:
            return None
        rows = rows[index]
        return Penalties(index, rows, self.num_prompt[rows], positions[index].astype(np.int32), self.repetition[rows],
                         self.presence[rows], self.frequency[rows])

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
