"""Completions schema: the request and the answer of /v1/completions as in OpenAI's reference. Used by completions.py.

A field of type None is OpenAI's and not supported: null is accepted, anything else refused with its name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from backend.serving.openai.chat_schema import Usage
from backend.serving.openai.format_fields import FormatFields
from backend.serving.openai.sampling_fields import SamplingFields, StreamOptions, TokenId

MAX_PROMPTS = 1024
MAX_CHOICES_IN_ALL = 1024
DEFAULT_MAX_TOKENS = 16  # OpenAI's

_Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_Prompts = (str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)] | _Ids
            | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)])


class CompletionRequest(SamplingFields, FormatFields):
    """See https://platform.openai.com/docs/api-reference/completions/create."""

    model: str
    prompt: _Prompts = Field(description="A text, token ids, or a list of either; choice i is of prompt i // n.")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="Absent: 16.")
    echo: bool | None = Field(None, description="The prompt comes before the completion, with its logprobs too.")
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: int | None = Field(None, ge=1, description="Only the same as n.")
    suffix: None = Field(None, description="Not supported here.")
    user: str | None = Field(None, description="Accepted; changes nothing here.")
    session_id: int | None = Field(None, ge=-1, lt=2**63, description="Accepted; changes nothing here.")


class CompletionLogprobs(BaseModel):
    """Parallel lists, a place for each token; a prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "abort"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
