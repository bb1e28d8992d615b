"""Requests and outputs: what a caller asks of the engine, and one streamed increment of the answer.

Token ids only: text becomes tokens before a request exists (backend/text) and again after an output left.
Used by serving, engine and, for the sampling parameters, worker. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from backend.errors import RequestError

MAX_LOGPROBS = 1024  # alternatives a request may ask for, as in LMDeploy 0.5
MAX_SEED = 2**64 - 1


class FinishReason(str, Enum):
    """Why a generation ended."""

    STOP = "stop"  # a stop id, an end id or a stop text
    LENGTH = "length"  # max_new_tokens, or the session is full
    ABORT = "abort"  # the caller cancelled
    ERROR = "error"  # the engine could not go on; the output's error says why


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one completion are chosen. The defaults are the same at every entry point.

    max_new_tokens      completion limit; None fills the session
    min_new_tokens      end and stop ids are masked before this many
    temperature         0 means greedy
    top_k               0 keeps all; top_p and min_p as usual
    repetition_penalty  multiplicative, over prompt and completion; presence and frequency over the completion
    seed                None draws one; equal seeds give equal tokens whatever else runs in the batch
    logit_bias          (token id, bias) pairs, added to the raw logits
    bad_words           token sequences that are never completed
    stop_ids            token ids that end the completion, besides the model's end ids
    stop                texts that end the completion; matched on text, cut from it
    ignore_eos          the model's end ids do not end the completion (stop_ids and stop still do)
    logprobs            None: none; 0: of the chosen token; k: and of the k likeliest. Of the raw distribution
    Raises RequestError with the range where a value is outside it."""

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.8
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        _check("max_new_tokens", limit, limit is None or limit >= 0, "an integer >= 0, or None to fill the session")
        most = math.inf if limit is None else limit
        _check("min_new_tokens", self.min_new_tokens, 0 <= self.min_new_tokens <= most, "in 0..max_new_tokens")
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "in 0..100 (0 is greedy)")
        _check("top_k", self.top_k, self.top_k >= 0, "an integer >= 0 (0 keeps all tokens)")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "in (0, 1]")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "in [0, 1]")
        _check("repetition_penalty", self.repetition_penalty, 0.0 < self.repetition_penalty <= 100.0, "in (0, 100]")
        _check("presence_penalty", self.presence_penalty, -2.0 <= self.presence_penalty <= 2.0, "in [-2, 2]")
        _check("frequency_penalty", self.frequency_penalty, -2.0 <= self.frequency_penalty <= 2.0, "in [-2, 2]")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, "an integer in 0..2^64-1")
        _check("logit_bias", self.logit_bias, all(math.isfinite(bias) for _, bias in self.logit_bias), "finite biases")
        # A text alone would be read as one stop text, or one bad word, for each of its letters.
        _check("stop", self.stop, not isinstance(self.stop, str) and all(self.stop), "a tuple of texts, none empty")
        _check("bad_words", self.bad_words, not isinstance(self.bad_words, str) and all(self.bad_words),
               "a tuple of token sequences, none empty")
        _check("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
               f"None or in 0..{MAX_LOGPROBS}")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion that a caller wants.

    token_ids      the prompt; in a session only the new turn's tokens
    session_id     None: no session, the KV goes when the request ends (blocks stay as prefix cache)
    session_start  True: begin the session afresh, whatever it held; False: it has to exist; None: either
    session_step   keep only the session's first so many tokens before this turn; None keeps all
    end_session    forget the session after this request
    session_len    bounds prompt + completion of this request; the engine's own bound holds besides
    kept_end_ids   of the ids that end the completion, those that its session remembers; the others are forgotten
    echo_prompt    the first output brings the whole prompt's ids, the session's history included"""

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    session_id: int | None = None
    session_start: bool | None = None
    session_step: int | None = None
    end_session: bool = False
    session_len: int | None = None
    kept_end_ids: tuple[int, ...] = ()
    echo_prompt: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a chosen token and of the likeliest tokens, natural logarithm, raw distribution."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """What one engine step added to one request.

    token_ids              the new tokens of this increment (an end or stop id that ended it included)
    finish_reason          None while it goes on
    num_prompt_tokens      session history included
    num_cached_tokens      prompt tokens that did not have to be computed
    num_completion_tokens  tokens generated so far
    logprobs               one per new token when asked for
    prompt_ids             with the first output of a request that asked to have its prompt echoed"""

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    error: str | None = None


def _check(name: str, value: object, is_valid: bool, allowed: str) -> None:
    if not is_valid:
        raise RequestError(f"{name}={value!r} is out of range; use {allowed}")
