"""/v1/chat/interactive: LMDeploy's chats that the server holds: each request brings one new message.

The engine has the session, with its tokens and KV; this file renders what is new and says how it stands.
Used by app.py."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from backend.errors import UnknownSessionError
from backend.requests import FinishReason, GenerateRequest
from backend.serving.long_text import num_characters, read_text
from backend.serving.openai.chat_messages import messages_called, template_messages
from backend.serving.openai.chat_schema import ChatMessage
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.errors import JSON_LINES, ApiError
from backend.serving.openai.event_stream import EVENT_STREAM, event_stream, while_connected
from backend.serving.openai.generation import UNNAMED, generate, new_answer_id
from backend.serving.openai.in_flight import limit_time
from backend.serving.openai.sampling_fields import SamplingFields

router = APIRouter(tags=["chat"])

SessionId = Annotated[int, Field(ge=0, lt=2**63)]
# Drawn ids keep out of the way of those that people choose, and are whole numbers in every language's JSON.
DRAWN_IDS = range(2**32, 2**53)


class InteractiveRequest(SamplingFields):
    """One turn. `prompt` "" without interactive_mode ends the session; `cancel` stops its running turn."""

    n: Literal[1] | None = Field(None, description="One turn has one answer.")
    prompt: str | Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        description="The new message, or a list of messages with which a session begins.")
    session_id: int = Field(-1, ge=-1, lt=2**63, description="-1: the server draws one, and the answer names it.")
    interactive_mode: bool = Field(False, description="Keep the session after this turn.")
    stream: bool = Field(False, description="One JSON object a line.")
    request_output_len: int | None = Field(None, ge=0, lt=2**31, description="Absent: as the session has room.")
    cancel: bool = False
    step: int | None = Field(None, ge=0, lt=2**63, description="Keep only the session's first so many tokens "
                             "before this turn: session_tokens of an earlier answer goes back to it.")
    image_url: None = Field(None, description="Not supported here.")
    adapter_name: None = Field(None, description="Not supported here.")


class InteractiveAnswer(BaseModel):
    """Of one turn. A line of a stream has the text that is new, and the counts of the turn so far."""

    text: str
    tokens: int = Field(description="Generated tokens.")
    input_tokens: int = Field(description="Tokens of the new message, the template's included.")
    history_tokens: int = Field(description="Tokens that the session held before.")
    finish_reason: str | None = Field(description="stop, length or abort; null while it goes on.")
    session_id: int = Field(description="-1 where no session is kept and none was named.")
    session_tokens: int = Field(description="Tokens that the session holds now, for `step`.")


@router.post("/v1/chat/interactive", response_model=InteractiveAnswer,
             responses=EVENT_STREAM)
async def interactive(body: InteractiveRequest, request: Request, context: Context) -> Response:
    """A turn of a chat that the server holds."""
    limit_time(body.timeout)
    if body.cancel:
        return await _cancel(body, context)
    if body.prompt in ("", []):
        return await _end(body, context)
    objects = _turn(body, context)
    if body.stream:
        request.scope[JSON_LINES] = True
        return await event_stream(request, _lines(objects))
    return _json(await while_connected(request, _whole(objects)))


async def _cancel(body: InteractiveRequest, context: ApiContext) -> Response:
    """Stops a running turn; what it has said stays in the session."""
    if body.session_id == -1:
        raise ApiError(400, "cancel needs the session_id whose turn it stops", param="session_id")
    await context.engine.stop_session(body.session_id)
    return _json(_object(body.session_id, reason=FinishReason.ABORT))


async def _end(body: InteractiveRequest, context: ApiContext) -> Response:
    if body.interactive_mode:
        raise ApiError(400, "prompt is empty; give a message, or interactive_mode=false to end the session",
                       param="prompt")
    if body.session_id == -1:
        raise ApiError(400, "an empty prompt ends a session, so session_id has to name it", param="session_id")
    await context.engine.end_session(body.session_id)
    return _json(_object(body.session_id, reason=FinishReason.STOP))


async def _turn(body: InteractiveRequest, context: ApiContext) -> AsyncGenerator[dict[str, Any], None]:
    """The turn's objects. One message goes on where its session is known; in any other case the session begins."""
    messages = ([{"role": "user", "content": body.prompt}] if isinstance(body.prompt, str)
                else template_messages(body.prompt, "prompt"))
    if body.step and (body.session_id == -1 or len(messages) != 1):
        raise ApiError(400, "step goes back in a session: name it by session_id and give one new message, or leave it "
                       "out", param="step")
    size = num_characters(messages)
    if body.session_id != -1 and body.step != 0 and len(messages) == 1:
        with messages_called("prompt"):
            token_ids = await read_text(size, context.front_end.turn_ids, messages[0], False)
        try:
            async with aclosing(_objects(context, _request(body, context, token_ids, body.session_id, False))) as later:
                async for item in later:
                    yield item
            return
        except UnknownSessionError:
            if body.step:
                raise
    session_id = body.session_id
    if session_id == -1 and body.interactive_mode:
        session_id = DRAWN_IDS.start + secrets.randbelow(len(DRAWN_IDS))
    with messages_called("prompt"):
        token_ids = await read_text(size, context.front_end.chat_ids, messages)
    async with aclosing(_objects(context, _request(body, context, token_ids, session_id, True))) as first:
        async for item in first:
            yield item


def _request(body: InteractiveRequest, context: ApiContext, token_ids: Sequence[int], session_id: int,
             starts: bool) -> GenerateRequest:
    front_end = context.front_end
    sampling = front_end.resolved(front_end.chat_sampling(body.sampling(body.request_output_len, None)))
    if session_id == -1:  # one turn that nobody goes on with
        return GenerateRequest(UNNAMED, tuple(token_ids), sampling)
    return GenerateRequest(UNNAMED, tuple(token_ids), sampling, session_id, session_start=starts,
                           session_step=None if starts else body.step, end_session=not body.interactive_mode)


async def _objects(context: ApiContext, request: GenerateRequest) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(generate(context, "prompt", new_answer_id("chat-"), [request])) as increments:
        async for _, increment in increments:
            output = increment.output
            yield _object(
                -1 if request.session_id is None else request.session_id, increment.text, output.num_completion_tokens,
                len(request.token_ids), output.num_prompt_tokens - len(request.token_ids), increment.finish_reason,
                output.num_prompt_tokens + increment.num_kept_tokens)


def _object(session_id: int, text: str = "", num_tokens: int = 0, num_input: int = 0, num_history: int = 0,
            reason: FinishReason | None = None, num_session: int = 0) -> dict[str, Any]:
    return {"text": text, "tokens": num_tokens, "input_tokens": num_input, "history_tokens": num_history,
            "finish_reason": None if reason is None else reason.value, "session_id": session_id,
            "session_tokens": num_session}


async def _lines(objects: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """LMDeploy's stream: JSON lines, although their content type says events."""
    async with aclosing(objects):
        async for item in objects:
            yield msgspec.json.encode(item) + b"\n"


async def _whole(objects: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    texts, last = [], {}
    async with aclosing(objects):
        async for last in objects:
            texts.append(last["text"])
    return {**last, "text": "".join(texts)}


def _json(document: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
