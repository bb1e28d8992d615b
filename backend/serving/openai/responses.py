"""/v1/responses: OpenAI's Responses API for text: a conversation of items in, the next items out, streamed as events.

Used by app.py. The wire's two sides are responses_schema.py and response_events.py; what is kept is in
response_store.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from backend.errors import MillraceError, RequestError
from backend.requests import FinishReason, GenerateOutput, GenerateRequest
from backend.serving.long_text import num_characters, read_text
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.errors import ApiError, api_error
from backend.serving.openai.event_stream import EVENT_STREAM, event_stream, while_connected
from backend.serving.openai.generation import check_grammar, choices, generate
from backend.serving.openai.in_flight import limit_time
from backend.serving.openai.logprobs import chat_logprobs
from backend.serving.openai.response_events import ResponseBuilder, new_id
from backend.serving.openai.response_items import check_results, to_messages
from backend.serving.openai.response_store import StoredResponse
from backend.serving.openai.responses_schema import (
    DeletedResponse,
    InputItemList,
    ItemsQuery,
    ResponseObject,
    ResponseRequest,
    RetrieveQuery,
)
from backend.serving.openai.tool_answer import ToolAnswer
from backend.text.grammar import grammar_of
from backend.text.tools.tool_plan import ToolPlan, plan_tools

router = APIRouter()


@router.post("/v1/responses", response_model=ResponseObject, responses=EVENT_STREAM)
async def create_response(body: ResponseRequest, context: Context, request: Request) -> Response:
    """The answer to a conversation; with `stream`, its growth as server-sent events."""
    limit_time(body.timeout)
    if body.model is not None:
        context.check_model(body.model)
    answer = await _answer(body, context)
    if body.stream:
        return await event_stream(request, _events(answer, context))
    return _json(await while_connected(request, _whole(answer, context)))


@router.get("/v1/responses/{response_id}", response_model=ResponseObject)
async def retrieve_response(response_id: str, context: Context, query: Annotated[RetrieveQuery, Query()]) -> Response:
    """An answer that was stored."""
    if query.stream:
        raise ApiError(400, "stream=true is not supported for an answer that is stored; leave it out",
                       code="unsupported_parameter", param="stream")
    return _json(_stored(response_id, context).body)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, context: Context) -> DeletedResponse:
    """Forgets an answer; later ones of the same conversation keep it in their own."""
    _stored(response_id, context)
    context.responses.delete(response_id)
    return DeletedResponse(id=response_id, object="response", deleted=True)


@router.get("/v1/responses/{response_id}/input_items", response_model=InputItemList)
async def list_input_items(response_id: str, context: Context, query: Annotated[ItemsQuery, Query()]) -> Response:
    """What a stored answer answers, earlier turns included."""
    items = list(_stored(response_id, context).input_items)
    if query.order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if query.after is not None:
        if query.after not in ids:
            raise ApiError(400, f"after={query.after!r} is no item of this answer; use an id from its list",
                           param="after")
        items = items[ids.index(query.after) + 1:]
    page = items[:query.limit]
    return _json({"object": "list", "data": page, "first_id": page[0]["id"] if page else None,
                  "last_id": page[-1]["id"] if page else None, "has_more": len(items) > query.limit})


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is asked of the engine, what the answer says of itself, and what it answers, earlier turns included."""

    request: GenerateRequest
    plan: ToolPlan | None
    head: Mapping[str, Any]
    input_items: tuple[Mapping[str, Any], ...]
    is_stored: bool


async def _answer(body: ResponseRequest, context: ApiContext) -> _Answer:
    earlier = None if body.previous_response_id is None else context.responses.get(body.previous_response_id)
    if body.previous_response_id is not None and earlier is None:
        raise ApiError(400, f"the answer {body.previous_response_id!r} is not stored here (any more); send the whole "
                       "conversation in input", code="previous_response_not_found", param="previous_response_id")
    earlier_items, new_items = earlier.items if earlier is not None else (), _input_items(body)
    check_results(earlier_items, new_items)
    items = (*earlier_items, *new_items)
    if body.store is not False:
        msgspec.json.encode(items)  # what could not be stored is refused now, not at the answer's end
    front_end, grammar = context.front_end, _grammar(body)
    sampling = body.sampling(body.max_output_tokens, _num_logprobs(body), grammar)
    with _flat_tools():
        plan = _plan(body)
        sampling = front_end.chat_sampling(sampling) if plan is None else front_end.tool_sampling(sampling, plan)
        await check_grammar(context, sampling, grammar and "text.format", plan.functions if plan is not None else ())
    messages = to_messages(body.instructions, items)
    tools = plan and plan.tools
    token_ids = await read_text(num_characters(messages, tools), front_end.chat_ids, messages, tools,
                                body.chat_template_kwargs)
    [request] = choices(context, "input", token_ids, sampling)
    return _Answer(request, plan, _head(body, request, context), items, body.store is not False)


def _grammar(body: ResponseRequest) -> str | None:
    try:
        return grammar_of(body.text.response_format() if body.text else None)
    except RequestError as error:
        raise ApiError(400, str(error), code="invalid_value", param="text.format") from None


def _plan(body: ResponseRequest) -> ToolPlan | None:
    choice = body.tool_choice
    return plan_tools([tool.as_chat_tool() for tool in body.tools or ()],
                      choice if choice is None or isinstance(choice, str) else choice.as_chat_choice(),
                      body.parallel_tool_calls)


@contextlib.contextmanager
def _flat_tools() -> Iterator[None]:
    """Errors about functions, which here have no object `function` around them, name this API's fields."""
    try:
        yield
    except RequestError as error:
        flat = (text and text.replace("].function.", "].") for text in (str(error), error.field))
        raise RequestError(*flat) from None


def _input_items(body: ResponseRequest) -> list[dict[str, Any]]:
    """As plain dicts, each with an id."""
    if isinstance(body.input, str):
        content = [{"type": "input_text", "text": body.input}]
        return [{"id": new_id("msg"), "type": "message", "role": "user", "status": "completed", "content": content}]
    given = [item.model_dump(exclude_none=True) for item in body.input]
    return [item if "id" in item else {"id": new_id("item"), **item} for item in given]


def _num_logprobs(body: ResponseRequest) -> int | None:
    if body.top_logprobs is None and "message.output_text.logprobs" not in (body.include or ()):
        return None
    return body.top_logprobs or 0


def _head(body: ResponseRequest, request: GenerateRequest, context: ApiContext) -> dict[str, Any]:
    return {"id": new_id("resp"), "object": "response", "created_at": int(time.time()), "completed_at": None,
            "status": "in_progress", "error": None, "incomplete_details": None, "model": context.model_names[0],
            "output": [], "usage": None, "instructions": body.instructions,
            "previous_response_id": body.previous_response_id, "store": body.store is not False,
            "max_output_tokens": body.max_output_tokens, "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p, "top_logprobs": body.top_logprobs or 0,
            "text": {"format": _format(body)}, "tools": [tool.model_dump() for tool in body.tools or ()],
            "tool_choice": _plain(body.tool_choice, "auto"),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "truncation": "disabled", "background": False, "service_tier": "default",
            "metadata": body.metadata or {}}


def _format(body: ResponseRequest) -> dict[str, Any]:
    return _plain(body.text and body.text.format, {"type": "text"})


def _plain(given: BaseModel | str | None, default: Any) -> Any:
    """What a request said, as its answer repeats it."""
    if isinstance(given, BaseModel):
        return given.model_dump(by_alias=True, exclude_none=True)
    return default if given is None else given


async def _events(answer: _Answer, context: ApiContext) -> AsyncGenerator[bytes, None]:
    """The events of the answer. What fails after the first one is the last event, not an error of HTTP."""
    builder = ResponseBuilder(answer.head)
    begun = builder.begin()
    try:
        async with aclosing(_run(answer, context, builder)) as increments:
            async for events in increments:
                yield begun + events
                begun = b""
    except MillraceError as error:
        if begun:
            raise
        failure = api_error(error)
        yield builder.fail(failure.code or failure.type, str(failure))


async def _whole(answer: _Answer, context: ApiContext) -> dict[str, Any]:
    builder = ResponseBuilder(answer.head)
    async with aclosing(_run(answer, context, builder)) as increments:
        async for _ in increments:
            pass
    return builder.response


async def _run(answer: _Answer, context: ApiContext, builder: ResponseBuilder) -> AsyncGenerator[bytes, None]:
    """Puts the engine's increments into the builder; what it makes of each."""
    tokenizer, tools = context.front_end.tokenizer, ToolAnswer(context, answer.plan)
    logprobs: list[dict[str, Any]] = []  # of tokens whose text has not come yet: it might begin a call
    async with aclosing(generate(context, "input", builder.response["id"], [answer.request],
                                 has_tools=answer.plan is not None)) as increments:
        async for _, increment in increments:
            delta, reason = tools.push(increment)
            if increment.logprobs:
                logprobs += chat_logprobs(tokenizer, increment.logprobs)["content"]
            events = b""
            if delta.content or (logprobs and answer.plan is None):
                events, logprobs = builder.text(delta.content, logprobs), []
            for call in delta.calls:
                logprobs = []  # tokens that write a call have no place for theirs
                if call.name is not None:
                    events += builder.call(call.id, call.name)
                if call.arguments:
                    events += builder.arguments(call.arguments)
            if reason is not None:
                events += builder.end(_usage(increment.output), _INCOMPLETE.get(increment.finish_reason))
                if answer.is_stored:
                    context.responses.put(StoredResponse(builder.response, answer.input_items))
            if events:
                yield events


_INCOMPLETE = {FinishReason.LENGTH: "max_output_tokens", FinishReason.ABORT: "abort"}


def _usage(output: GenerateOutput) -> dict[str, Any]:
    num_input, num_output = output.num_prompt_tokens, output.num_completion_tokens
    return {"input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": output.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": num_output, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_input + num_output}


def _stored(response_id: str, context: ApiContext) -> StoredResponse:
    found = context.responses.get(response_id)
    if found is None:
        raise ApiError(404, f"the answer {response_id!r} is not stored here (any more)", code="not_found",
                       param="response_id")
    return found


def _json(document: Mapping[str, Any]) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
