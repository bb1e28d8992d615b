"""/generate: token ids in and out, as LMDeploy has it, for those who tokenise by themselves. No chat template.

Used by app.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.requests import GenerateRequest
from backend.serving.long_text import read_text
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.event_stream import DONE, EVENT_STREAM, event_stream, while_connected
from backend.serving.openai.format_fields import FormatFields
from backend.serving.openai.generation import check_grammar, choices, generate, new_answer_id
from backend.serving.openai.in_flight import limit_time
from backend.serving.openai.sampling_fields import SamplingFields, TokenId
from backend.text.front_end import TextOutput

router = APIRouter(tags=["tokens"])


class GenerateBody(SamplingFields, FormatFields):
    """A prompt as text or, as they are, token ids."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        {"required": ["input_ids"], "properties": {"input_ids": {"type": "array"}}}]})
    n: Literal[1] | None = Field(None, description="A request has one answer.")
    prompt: str | None = None
    input_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="Absent: as many as the model's length allows.")
    return_logprob: bool = False
    stream: bool = Field(False, description="Each event brings what is new; [DONE] ends them.")

    @model_validator(mode="after")
    def _one_of_both(self) -> GenerateBody:
        if (self.prompt is None) == (self.input_ids is None):
            raise ValueError("give either prompt or input_ids")
        return self


class FinishReason(BaseModel):
    type: str


class MetaInfo(BaseModel):
    """id: for /v1/abort. finish_reason: stop, length or abort; null while it goes on."""

    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    output_token_logprobs: list[tuple[float, int]] | None = Field(
        None, description="For each id of output_ids its log-probability in the raw distribution, and the id.")


class GenerateAnswer(BaseModel):
    """output_ids: all that was generated, the id that ended it included, which has no part in the text."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo


@router.post("/generate", response_model=GenerateAnswer, responses=EVENT_STREAM)
async def generate_tokens(body: GenerateBody, request: Request, context: Context) -> Response:
    """Continues a prompt; the answer has the ids beside the text."""
    limit_time(body.timeout)
    field, prompt = ("prompt", body.prompt) if body.input_ids is None else ("input_ids", body.input_ids)
    ids = await read_text(len(prompt), context.front_end.prompt_ids, prompt)
    sampling = body.sampling(body.max_tokens, 0 if body.return_logprob else None, body.answer_grammar())
    await check_grammar(context, sampling, body.format_field())
    [engine_request] = choices(context, field, ids, sampling)
    increments = _increments(context, field, engine_request)
    if body.stream:
        return await event_stream(request, _events(increments))
    whole = await while_connected(request, _whole(increments))
    return Response(msgspec.json.encode(whole), media_type="application/json")


async def _increments(context: ApiContext, field: str,
                      request: GenerateRequest) -> AsyncGenerator[dict[str, Any], None]:
    answer_id = new_answer_id("gen-")
    async with aclosing(generate(context, field, answer_id, [request], continues_prompt=True)) as outputs:
        async for _, output in outputs:
            yield _answer(answer_id, output, request.sampling.logprobs is not None)


async def _events(increments: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(increments):
        async for increment in increments:
            yield b"data: " + msgspec.json.encode(increment) + b"\n\n"
    yield DONE


async def _whole(increments: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The increments joined."""
    text, ids, logprobs, meta = [], [], [], {}
    async with aclosing(increments):
        async for increment in increments:
            meta = increment["meta_info"]
            text.append(increment["text"])
            ids += increment["output_ids"]
            logprobs += meta.get("output_token_logprobs", ())
    joined = {"output_token_logprobs": logprobs} if "output_token_logprobs" in meta else {}
    return {"text": "".join(text), "output_ids": ids, "meta_info": {**meta, **joined}}


def _answer(answer_id: str, increment: TextOutput, has_logprobs: bool) -> dict[str, Any]:
    output, reason = increment.output, increment.finish_reason
    meta: dict[str, Any] = {
        "id": answer_id, "finish_reason": None if reason is None else {"type": reason.value},
        "prompt_tokens": output.num_prompt_tokens, "cached_tokens": output.num_cached_tokens,
        "completion_tokens": output.num_completion_tokens}
    if has_logprobs:
        meta["output_token_logprobs"] = [(entry.logprob, entry.token_id) for entry in output.logprobs]
    return {"text": increment.text, "output_ids": output.token_ids, "meta_info": meta}
