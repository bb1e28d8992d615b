"""Requests and outputs: what a caller asks of the engine, and one streamed increment of the answer.

Token ids only: text becomes tokens before a request exists (backend/text) and again after an output left.
Used by serving, engine and, for the sampling parameters, worker. Imports no torch."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from backend.errors import RequestError

MAX_LOGPROBS = 1024  # alternatives a request may ask for, as in LMDeploy 0.5
# What every step looks for costs time, which all requests share, and bad words memory: their number times the longest.
MAX_STOP_TEXTS = 256
MAX_STOP_LEN = 1024  # characters
MAX_WORDS = 1024
MAX_WORD_LEN = 256  # characters, or token ids
MAX_SEED = 2**64 - 1
# Whatever is asked for, logits stay far within float32: a positive one divided by 1e-38 would be infinite.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100
MAX_BIAS = 1e9


class FinishReason(str, Enum):
    """Why a generation ended."""

    STOP = "stop"  # a stop id, an end id or a stop text
    LENGTH = "length"  # max_new_tokens, or the session is full; or a grammar that grew too complex on the way
    ABORT = "abort"  # the caller cancelled


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one completion are chosen. The defaults are the same at every entry point.

    max_new_tokens      completion limit; None fills the session
    min_new_tokens      end and stop ids are masked before this many, and no stop text ends within them
    temperature         0 means greedy
    top_k               0 keeps all; top_p and min_p as usual
    repetition_penalty  multiplicative, in 0.01..100, over prompt and completion; presence and frequency over the
                        completion
    seed                None draws one; equal seeds give equal tokens whatever else runs in the batch
    logit_bias          (token id, bias in -1e9..1e9) pairs, added to the raw logits
    bad_words           texts, or token sequences, that are never completed; one text stands for itself
    stop_ids            token ids that end the completion, besides the model's end ids
    stop                texts that end the completion, or one text; matched on text, cut from it
    ignore_eos          the model's end ids do not end the completion (stop_ids and stop still do)
    logprobs            None: none; 0: of the chosen token; k: and of the k likeliest. Of the raw distribution
    skip_special_tokens special tokens are left out of the text
    grammar             what the completion must look like, a Lark grammar in llguidance's dialect (backend/text/grammar
                        makes it from a JSON schema, a regex …); when nothing more can follow, the completion ends
    Lists are taken for tuples. Raises RequestError, saying what is allowed, for a value of a wrong kind or range."""

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
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name in ("logit_bias", "bad_words", "stop_ids", "stop"):
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        for name, (is_allowed, allowed) in _ALLOWED.items():
            _check(name, getattr(self, name), is_allowed(getattr(self, name)), allowed)
        _check("min_new_tokens", self.min_new_tokens,
               self.max_new_tokens is None or self.min_new_tokens <= self.max_new_tokens, "in 0..max_new_tokens")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion that a caller wants.

    token_ids      the prompt; in a session only the new turn's tokens
    session_id     None: no session, the KV goes when the request ends (blocks stay as prefix cache)
    session_start  True: begin the session afresh, whatever it held; False: it has to exist; None: either
    session_is_new  True: refused where the session is known
    session_step   keep only the session's first so many tokens before this turn; None keeps all
    end_session    forget the session after this request
    session_len    bounds prompt + completion of this request; the engine's own bound holds besides
    kept_end_ids   of the ids that end the completion, those that its session remembers; the others are forgotten
    echo_prompt    the first output brings the whole prompt's ids, the session's history included
    prompt_logprobs  the first output brings the logprobs of the prompt's tokens after the first, each with so many of
                   the likeliest; such a request computes its whole prompt, so it can be of no session"""

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    session_id: int | None = None
    session_start: bool | None = None
    session_is_new: bool = False
    session_step: int | None = None
    end_session: bool = False
    session_len: int | None = None
    kept_end_ids: tuple[int, ...] = ()
    echo_prompt: bool = False
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        count = self.prompt_logprobs
        _check("prompt_logprobs", count, count is None or _is_integer(count, 0, MAX_LOGPROBS),
               f"an integer in 0..{MAX_LOGPROBS}, or None")
        if count is not None and self.session_id is not None:
            raise RequestError("prompt_logprobs and a session exclude each other; leave one of them out")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a chosen token and of the likeliest tokens, natural logarithm, raw distribution."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's books at one moment, and its counts since it started (prompt, cached and completion tokens).

    num_cached_tokens  prompt tokens that the prefix cache or a session saved from being computed
    num_aborts         requests that a caller, or a caller's leaving, ended
    num_steps          steps launched since the start: an engine that has work and launches none is stuck"""

    num_blocks: int
    num_free_blocks: int
    num_running: int
    num_waiting: int
    num_sessions: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_aborts: int = 0
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """Where the time of one request went, seconds, as far as the engine knows; decoding is the rest.

    queued_s     from its arrival in the engine to its first row
    prefill_s    from there to its first token, preemptions taken out
    preempted_s  without a row after losing one; what is computed again then counts as decoding"""

    queued_s: float
    prefill_s: float
    preempted_s: float
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """What one engine step added to one request.

    token_ids              the new tokens of this increment (an end or stop id that ended it included)
    finish_reason          None while it goes on
    num_prompt_tokens      session history included
    num_cached_tokens      prompt tokens that did not have to be computed
    num_completion_tokens  tokens generated so far
    logprobs               one per new token when asked for
    prompt_ids             with the first output of a request that asked to have its prompt echoed
    prompt_logprobs        with the first output where asked for: of the prompt's tokens after the first
    timing                 with the first token and after each preemption"""

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    timing: RequestTiming | None = None


def _is_integer(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_tuple_of(values: Any, is_allowed: Callable[[Any], bool], most: float = math.inf) -> bool:
    return isinstance(values, tuple) and len(values) <= most and all(map(is_allowed, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_stop(value: Any) -> bool:
    return _is_text(value) and len(value) <= MAX_STOP_LEN


def _is_word(value: Any) -> bool:
    return (_is_text(value) or _is_tuple_of(value, _is_integer)) and 0 < len(value) <= MAX_WORD_LEN


def _is_bias(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_integer(value[0]) and (
        _is_number(value[1], -MAX_BIAS, MAX_BIAS))


def _is_repetition_penalty(value: Any) -> bool:
    # 0.01 in float32, as KServe's clients send it, is a little less.
    return _is_number(value, MIN_REPETITION_PENALTY - 1e-9, MAX_REPETITION_PENALTY)


# Field of SamplingParams → (whether a value is allowed, what is, in words).
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda value: value is None or _is_integer(value, 0),
                       "an integer >= 0, or None to fill the session"),
    "min_new_tokens": (lambda value: _is_integer(value, 0), "an integer in 0..max_new_tokens"),
    "temperature": (lambda value: _is_number(value, 0, 100), "a number in 0..100 (0 is greedy)"),
    "top_k": (lambda value: _is_integer(value, 0), "an integer >= 0 (0 keeps all tokens)"),
    "top_p": (lambda value: _is_number(value, 0, 1) and value > 0, "a number in (0, 1]"),
    "min_p": (lambda value: _is_number(value, 0, 1), "a number in [0, 1]"),
    "repetition_penalty": (_is_repetition_penalty,
                           f"a number in [{MIN_REPETITION_PENALTY}, {MAX_REPETITION_PENALTY}] (1 changes nothing)"),
    "presence_penalty": (lambda value: _is_number(value, -2, 2), "a number in [-2, 2]"),
    "frequency_penalty": (lambda value: _is_number(value, -2, 2), "a number in [-2, 2]"),
    "seed": (lambda value: value is None or _is_integer(value, 0, MAX_SEED), "an integer in 0..2^64-1, or None"),
    "logit_bias": (lambda value: _is_tuple_of(value, _is_bias), "pairs of a token id and a bias in [-1e9, 1e9]"),
    "bad_words": (lambda value: _is_tuple_of(value, _is_word, MAX_WORDS),
                  f"a text, or a tuple of up to {MAX_WORDS:,} texts or tuples of token ids, each of 1 to "
                  f"{MAX_WORD_LEN} characters or ids"),
    "stop_ids": (lambda value: _is_tuple_of(value, _is_integer, MAX_WORDS),
                 f"a tuple of up to {MAX_WORDS:,} token ids"),
    "stop": (lambda value: _is_tuple_of(value, _is_stop, MAX_STOP_TEXTS),
             f"a text, or a tuple of up to {MAX_STOP_TEXTS} texts, each of 1 to {MAX_STOP_LEN:,} characters"),
    "ignore_eos": (lambda value: isinstance(value, bool), "True or False"),
    "skip_special_tokens": (lambda value: isinstance(value, bool), "True or False"),
    "logprobs": (lambda value: value is None or _is_integer(value, 0, MAX_LOGPROBS),
                 f"an integer in 0..{MAX_LOGPROBS}, or None"),
    "grammar": (lambda value: value is None or _is_text(value), "a Lark grammar as text, or None"),
}


def _as_tuples(value: Any) -> Any:
    """A text alone as a tuple of it, so that it is not read letter by letter; lists as tuples, one level deep."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        fault = "is out of range" if isinstance(value, (int, float)) else "does not work"
        raise RequestError(f"{name}={reprlib.repr(value)} {fault}; use {allowed}", name)
