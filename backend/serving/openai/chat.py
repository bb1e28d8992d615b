"""/v1/chat/completions: a whole conversation in, the assistant's next message out, at once or as it grows.

Used by app.py. What a streamed and an unstreamed answer say is made in one place, `_deltas`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from backend.requests import GenerateRequest
from backend.serving.long_text import num_characters, read_text
from backend.serving.openai.chat_chunks import ChatChunks
from backend.serving.openai.chat_messages import template_messages
from backend.serving.openai.chat_schema import ChatCompletion, ChatRequest
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.errors import ApiError
from backend.serving.openai.event_stream import DONE, EVENT_STREAM, event_stream, while_connected
from backend.serving.openai.generation import check_count, check_grammar, choices, generate, new_answer_id
from backend.serving.openai.in_flight import limit_time
from backend.serving.openai.logprobs import chat_logprobs
from backend.serving.openai.tool_answer import ToolAnswer, call_delta, whole_calls
from backend.serving.openai.usage import UsageCount
from backend.text.tools.call_parser import CallDelta
from backend.text.tools.tool_plan import ToolPlan, plan_tools

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENT_STREAM)
async def create_chat_completion(body: ChatRequest, context: Context, request: Request) -> Response:
    """The assistant's answer to a conversation; with `stream`, chunks of it as server-sent events."""
    context.check_model(body.model)
    limit_time(body.timeout)
    chat = await _chat(body, context)
    if body.stream:
        return await event_stream(request, _stream(chat, context, body))
    document = await while_connected(request, _whole(chat, context))
    return Response(msgspec.json.encode(document), media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Chat:
    """What is asked of the engine, one request per choice, and how the answer is called."""

    requests: list[GenerateRequest]
    continues_prompt: bool
    plan: ToolPlan | None
    answer_id: str = field(default_factory=lambda: new_answer_id("chatcmpl-"))
    created_s: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class _Delta:
    """What one increment adds to a choice."""

    index: int
    content: str
    calls: list[CallDelta]
    logprobs: dict[str, Any] | None
    finish_reason: str | None


async def _chat(body: ChatRequest, context: ApiContext) -> _Chat:
    """Raises ApiError or RequestError for what the fields' types do not refuse."""
    plan, num_choices = _plan(body), body.n or 1
    check_count(context, num_choices)
    grammar = body.answer_grammar(body.response_format)
    sampling = body.sampling(_max_new_tokens(body), _num_logprobs(body), grammar)
    if isinstance(body.messages, str):
        token_ids = await read_text(len(body.messages), context.front_end.prompt_ids, body.messages)
    else:
        messages = template_messages(body.messages, "messages")
        tools = plan and plan.tools
        token_ids = await read_text(num_characters(messages, tools), context.front_end.chat_ids, messages, tools,
                                    body.chat_template_kwargs)
        sampling = (context.front_end.chat_sampling(sampling) if plan is None
                    else context.front_end.tool_sampling(sampling, plan))
    await check_grammar(context, sampling, grammar and body.format_field(body.response_format),
                        plan.functions if plan is not None else ())
    return _Chat(choices(context, "messages", token_ids, sampling, num_choices), isinstance(body.messages, str), plan)


def _plan(body: ChatRequest) -> ToolPlan | None:
    choice = body.tool_choice
    plan = plan_tools([tool.model_dump(exclude_none=True) for tool in body.tools or ()],
                      choice.model_dump() if isinstance(choice, BaseModel) else choice, body.parallel_tool_calls)
    if plan is not None and isinstance(body.messages, str):
        raise ApiError(400, "tools need a conversation; give messages as a list", code="invalid_value", param="tools")
    return plan


def _max_new_tokens(body: ChatRequest) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(400, f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} "
                       "disagree; give one of them", code="invalid_value", param="max_tokens")
    return body.max_completion_tokens if body.max_tokens is None else body.max_tokens


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true; add it", code="invalid_value", param="top_logprobs")
    return None


async def _deltas(chat: _Chat, context: ApiContext, usage: UsageCount) -> AsyncGenerator[_Delta, None]:
    tokenizer = context.front_end.tokenizer
    wants_logprobs = chat.requests[0].sampling.logprobs is not None
    answers = [ToolAnswer(context, chat.plan) for _ in chat.requests]
    async with aclosing(generate(context, "messages", chat.answer_id, chat.requests, chat.continues_prompt,
                                 has_tools=chat.plan is not None)) as increments:
        async for index, increment in increments:
            usage.add(index, increment.output)
            logprobs = chat_logprobs(tokenizer, increment.logprobs) if wants_logprobs else None
            added, reason = answers[index].push(increment)
            yield _Delta(index, added.content, added.calls, logprobs, reason)


async def _stream(chat: _Chat, context: ApiContext, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    has_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    chunks = ChatChunks(chat.answer_id, chat.created_s, context.model_names[0], has_usage)
    usage, begun, has_said = UsageCount(len(chat.requests)), set(), set()  # indices of choices
    # As in the unstreamed message: null where there are only calls, which cannot be known yet where there may be some.
    first = {"role": "assistant", "content": "" if chat.plan is None else None}
    async with aclosing(_deltas(chat, context, usage)) as deltas:
        async for delta in deltas:
            events = b""
            if delta.index not in begun:
                begun.add(delta.index)
                events = chunks.delta(delta.index, first)
            if delta.content or delta.calls:
                has_said.add(delta.index)
            if delta.logprobs is not None and delta.logprobs["content"]:
                text = {"content": delta.content} if delta.content else {}
                events += chunks.delta(delta.index, text, delta.logprobs)
            elif delta.content:
                events += chunks.text(delta.index, delta.content)
            for call in delta.calls:
                events += chunks.delta(delta.index, {"tool_calls": [call_delta(call)]})
            if delta.finish_reason is not None:
                last = {} if chat.plan is None or delta.index in has_said else {"content": ""}
                events += chunks.delta(delta.index, last, None, delta.finish_reason)
            if events:
                yield events
    yield (chunks.usage(usage.document()) if has_usage else b"") + DONE


async def _whole(chat: _Chat, context: ApiContext) -> dict[str, Any]:
    usage = UsageCount(len(chat.requests))
    texts: list[list[str]] = [[] for _ in chat.requests]
    calls: list[list[CallDelta]] = [[] for _ in chat.requests]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in chat.requests]
    reasons: list[str | None] = [None] * len(chat.requests)
    has_logprobs = chat.requests[0].sampling.logprobs is not None
    async with aclosing(_deltas(chat, context, usage)) as deltas:
        async for delta in deltas:
            texts[delta.index].append(delta.content)
            calls[delta.index] += delta.calls
            reasons[delta.index] = delta.finish_reason
            if delta.logprobs is not None:
                logprobs[delta.index] += delta.logprobs["content"]
    return {"id": chat.answer_id, "object": "chat.completion", "created": chat.created_s,
            "model": context.model_names[0],
            "choices": [{"index": index,
                         "message": _answer_message("".join(text), whole_calls(calls[index])),
                         "logprobs": {"content": logprobs[index], "refusal": None} if has_logprobs else None,
                         "finish_reason": reasons[index]} for index, text in enumerate(texts)],
            "usage": usage.document()}


def _answer_message(content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """An answer that only calls has no content, and one without calls no list of them, as OpenAI's."""
    if not calls:
        return {"role": "assistant", "content": content, "refusal": None}
    return {"role": "assistant", "content": content or None, "refusal": None, "tool_calls": calls}
