"""/v1/completions: plain prompts in, as texts or token ids, their continuations out, at once or as they grow.

Used by app.py. What a streamed and an unstreamed answer say is made in one place, `_parts`."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from backend.errors import RequestError
from backend.requests import GenerateRequest, SamplingParams, TokenLogprobs
from backend.serving.long_text import read_text
from backend.serving.openai.completions_schema import (
    DEFAULT_MAX_TOKENS,
    MAX_CHOICES_IN_ALL,
    Completion,
    CompletionRequest,
)
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.errors import ApiError
from backend.serving.openai.event_stream import DONE, EVENT_STREAM, event_stream, while_connected
from backend.serving.openai.generation import check_count, check_grammar, choices, generate, new_answer_id
from backend.serving.openai.in_flight import limit_time
from backend.serving.openai.logprobs import CompletionLogprobsWriter
from backend.serving.openai.usage import UsageCount
from backend.text.front_end import TextOutput

router = APIRouter()


@router.post("/v1/completions", response_model=Completion, responses=EVENT_STREAM)
async def create_completion(body: CompletionRequest, context: Context, request: Request) -> Response:
    """The continuation of each prompt; with `stream`, parts of them as server-sent events."""
    context.check_model(body.model)
    limit_time(body.timeout)
    asked = await _asked(body, context)
    if body.stream:
        return await event_stream(request, _stream(asked, context, body))
    document = await while_connected(request, _whole(asked, context))
    return Response(msgspec.json.encode(document), media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of the engine, request i for choice i, and how the answer is called.

    echoes  per choice: the prompt as text, where it has to be echoed"""

    requests: list[GenerateRequest]
    num_choices: int
    echoes: list[str | None]
    answer_id: str = field(default_factory=lambda: new_answer_id("cmpl-"))
    created_s: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class _Part:
    """What one increment adds to a choice."""

    index: int
    text: str
    logprobs: dict[str, list[Any]] | None
    finish_reason: str | None


async def _asked(body: CompletionRequest, context: ApiContext) -> _Asked:
    """Raises ApiError or RequestError for what the fields' types do not refuse."""
    num_choices = body.n or 1
    if body.best_of not in (None, num_choices):
        raise ApiError(400, f"best_of={body.best_of} does not work with n={num_choices}; leave it out, all choices are "
                       "returned", code="unsupported_parameter", param="best_of")
    prompts = _prompts(body)
    if len(prompts) * num_choices > MAX_CHOICES_IN_ALL:
        raise ApiError(400, f"{len(prompts)} prompts with n={num_choices} are more than {MAX_CHOICES_IN_ALL} choices; "
                       "send fewer at once", code="invalid_value", param="n")
    check_count(context, num_choices, len(prompts))
    grammar = body.answer_grammar()
    size = sum(map(len, prompts))  # of all: many short prompts are a long text
    requests, echoes = [], []
    for prompt in prompts:
        token_ids = await read_text(size, context.front_end.prompt_ids, prompt)
        max_tokens = body.max_tokens
        if max_tokens is None:
            room = context.engine.session_len - len(token_ids)
            max_tokens = min(DEFAULT_MAX_TOKENS, room) if room > 0 else DEFAULT_MAX_TOKENS
        sampling = body.sampling(max_tokens, body.logprobs, grammar)
        await check_grammar(context, sampling, body.format_field())
        requests += choices(context, "prompt", token_ids, sampling, num_choices,
                            body.logprobs if body.echo else None)
        echoes += [_echo(prompt, sampling, context) if body.echo else None] * num_choices
    return _Asked(requests, num_choices, echoes)


def _echo(prompt: str | list[int], sampling: SamplingParams, context: ApiContext) -> str:
    if isinstance(prompt, str):
        return prompt
    try:
        return context.front_end.tokenizer.decode(prompt, sampling.skip_special_tokens)
    except RequestError as error:
        raise RequestError(f"prompt: {error}", "prompt") from None


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    if isinstance(body.prompt, str) or isinstance(body.prompt[0], int):
        return [body.prompt]
    return body.prompt


async def _parts(asked: _Asked, context: ApiContext, usage: UsageCount) -> AsyncGenerator[_Part, None]:
    has_logprobs = asked.requests[0].sampling.logprobs is not None
    writers = [CompletionLogprobsWriter(context.front_end.tokenizer, request.sampling.skip_special_tokens,
                                        request.token_ids if echo is None else ())
               for request, echo in zip(asked.requests, asked.echoes, strict=True)] if has_logprobs else None
    begun: set[int] = set()
    async with aclosing(generate(context, "prompt", asked.answer_id, asked.requests,
                                 continues_prompt=True)) as increments:
        async for index, increment in increments:
            usage.add(index, increment.output)
            text, tokens = increment.text, increment.logprobs
            if increment.end_logprob is not None:  # it has no text, but a place: lm-eval takes the last one off unseen
                tokens = (*tokens, increment.end_logprob)
            if index not in begun:
                begun.add(index)
                if asked.echoes[index] is not None:
                    text, tokens = asked.echoes[index] + text, (*_prompt_logprobs(asked, index, increment), *tokens)
            yield _Part(index, text, writers[index].write(tokens) if writers is not None else None,
                        increment.finish_reason and increment.finish_reason.value)


def _prompt_logprobs(asked: _Asked, index: int, increment: TextOutput) -> tuple[TokenLogprobs, ...]:
    """Of every token of the prompt; nothing comes before the first one, so it has none."""
    first = TokenLogprobs(asked.requests[index].token_ids[0], math.nan)
    return (first, *increment.output.prompt_logprobs)


async def _stream(asked: _Asked, context: ApiContext, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    has_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    head = {"id": asked.answer_id, "object": "text_completion", "created": asked.created_s,
            "model": context.model_names[0]}
    begin = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
    end = (b'],"usage":null}' if has_usage else b"]}") + b"\n\n"
    usage = UsageCount(asked.num_choices)
    async with aclosing(_parts(asked, context, usage)) as parts:
        async for part in parts:
            if part.text or part.finish_reason is not None or (part.logprobs and part.logprobs["tokens"]):
                yield begin + msgspec.json.encode(_choice(part)) + end
    last = begin + b'],"usage":' + msgspec.json.encode(usage.document()) + b"}\n\n" if has_usage else b""
    yield last + DONE


async def _whole(asked: _Asked, context: ApiContext) -> dict[str, Any]:
    usage = UsageCount(asked.num_choices)
    found: list[list[_Part]] = [[] for _ in asked.requests]
    async with aclosing(_parts(asked, context, usage)) as parts:
        async for part in parts:
            found[part.index].append(part)
    return {"id": asked.answer_id, "object": "text_completion", "created": asked.created_s,
            "model": context.model_names[0],
            "choices": [_choice(_joined(parts)) for parts in found],
            "usage": usage.document()}


def _joined(parts: list[_Part]) -> _Part:
    """The parts of one choice as one."""
    logprobs = None
    if parts[0].logprobs is not None:
        logprobs = {name: [value for part in parts for value in part.logprobs[name]] for name in parts[0].logprobs}
    return _Part(parts[0].index, "".join(part.text for part in parts), logprobs, parts[-1].finish_reason)


def _choice(part: _Part) -> dict[str, Any]:
    return {"text": part.text, "index": part.index, "logprobs": part.logprobs, "finish_reason": part.finish_reason}
