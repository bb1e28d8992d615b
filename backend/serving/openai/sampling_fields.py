"""Sampling fields: those that /v1/chat/completions and /v1/completions share, OpenAI's and ours, and what they mean.

Used by both endpoints' schemas, and by others that take the same fields."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backend.errors import RequestError
from backend.requests import (
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_STOP_LEN,
    MAX_WORDS,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)

MAX_CHOICES = 128
MAX_STOP_TEXTS = 16
MAX_METADATA = 16  # OpenAI's
MAX_FIELDS = 256  # of one object
MAX_BIASES = 1024
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LEN)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _with_few_fields(given: Any, count: int) -> Any:
    """An object with more is refused before anybody looks into it: each wrong field would get an error of its own."""
    if isinstance(given, dict) and len(given) > count:
        raise ValueError(f"{len(given)} fields are more than the {count} that are allowed; send fewer")
    return given


Metadata = Annotated[dict[str, str], Field(max_length=MAX_METADATA),
                     BeforeValidator(partial(_with_few_fields, count=MAX_METADATA))]
_TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class ApiModel(BaseModel):
    """A request, or a part of one: what is not named here is refused, and no kind of value is taken for another.

    Lists of any length are `fail_fast`: a body of 8 MiB holds millions of wrong values, whose errors would fill the
    memory."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        return _with_few_fields(given, MAX_FIELDS)


class StreamOptions(ApiModel):
    """include_usage        a last chunk without choices brings the counts of the whole answer
    include_obfuscation  nothing is ever added to chunks"""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(ApiModel):
    """How tokens are chosen and when an answer ends. Null is as good as absent."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_TEXTS, fail_fast=True)] | None = Field(
        None, description="Texts that end the answer and are no part of it, of as many tokens as they take.")
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED, description="Choice i uses seed + i.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[_TokenIdText, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES),
                          BeforeValidator(partial(_with_few_fields, count=MAX_BIASES))] | None = Field(
        None, description="Token id to what is added to its logit.")

    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 and -1 keep all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY,
                                             description="1 changes nothing.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_WORDS, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    skip_special_tokens: bool | None = None
    timeout: float | None = Field(None, gt=0, le=86_400,
                                  description="Seconds after which the answer is given up with 504.")

    def sampling(self, max_new_tokens: int | None, logprobs: int | None, grammar: str | None = None) -> SamplingParams:
        """As the engine takes them, with what is not among these fields. What is absent has SamplingParams' own
        default. Raises RequestError."""
        if max_new_tokens is not None and (self.min_tokens or 0) > max_new_tokens:
            raise RequestError(f"min_tokens={self.min_tokens} is more than the {max_new_tokens} new tokens that are "
                               "allowed; lower it", "min_tokens")
        given: dict[str, Any] = {name: getattr(self, name) for name in (
            "temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty",
            "ignore_eos", "skip_special_tokens")}
        given |= {"min_new_tokens": self.min_tokens, "stop": self.stop, "stop_ids": self.stop_token_ids}
        if self.top_p == 0:
            given |= {"top_p": None, "top_k": 1}  # the smallest set of tokens with any weight is the likeliest one
        elif self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)
        if self.seed is not None:
            given["seed"] = self.seed % (MAX_SEED + 1)
        if self.logit_bias is not None:
            given["logit_bias"] = [(int(token_id), bias) for token_id, bias in self.logit_bias.items()]
        return SamplingParams(max_new_tokens=max_new_tokens, logprobs=logprobs, grammar=grammar,
                              **{name: value for name, value in given.items() if value is not None})
