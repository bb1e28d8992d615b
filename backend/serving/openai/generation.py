"""Generation: runs requests on the engine and gives their texts as they grow. What every endpoint uses.

Owns the engine's requests of one answer: they end when whoever iterates leaves. Knows no wire format."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

from backend.errors import ContextLengthError, RequestError
from backend.requests import MAX_SEED, GenerateRequest, SamplingParams
from backend.serving.openai.context import ApiContext
from backend.text.front_end import TextFrontEnd, TextOutput
from backend.text.grammar import json_schema_grammar
from backend.text.grammar_check import MAX_PENDING
from backend.text.tools.tool_plan import TOOLS, Function

UNNAMED = ""  # the id of a request until `generate` names it after its answer

NAMING_LIMIT_S = 0.3  # for finding out which of many functions is at fault, once something is
_CHECKS = ThreadPoolExecutor(2 * MAX_PENDING, "grammar-check")  # of their own: slow ones keep no text waiting


def new_answer_id(prefix: str) -> str:
    """An id for an answer: the prefix says of which kind it is, as OpenAI's do (`chatcmpl-`, `cmpl-`)."""
    return f"{prefix}{uuid.uuid4().hex}"


async def check_grammar(context: ApiContext, sampling: SamplingParams, field: str | None,
                        functions: Sequence[Function] = ()) -> None:
    """Before `choices`, which does it too and would keep other requests waiting.

    field, functions  of the request that the grammar is made of; None where it is made of functions only
    Raises RequestError, which names the field or the function where one is at fault."""
    if sampling.grammar is not None:
        await asyncio.get_running_loop().run_in_executor(
            _CHECKS, _check_grammar, context.front_end, sampling.grammar, field, functions)


def _check_grammar(front_end: TextFrontEnd, grammar: str, field: str | None, functions: Sequence[Function]) -> None:
    try:
        front_end.check_grammar(grammar)
    except RequestError as error:
        end_s = time.monotonic() + NAMING_LIMIT_S
        for function in functions:
            if time.monotonic() > end_s:
                break
            try:
                front_end.check_grammar(json_schema_grammar(function.parameters))
            except RequestError as fault:
                raise RequestError(f"{function.field}: {fault}", function.field) from None
        named = field if not functions else TOOLS if field is None else None
        raise RequestError(str(error), named) from None


def check_count(context: ApiContext, num_choices: int, num_prompts: int = 1) -> None:
    """Raises RequestError for an answer of more requests than the engine can ever hold."""
    most = context.engine.max_requests
    if num_choices * num_prompts > most:
        prompts = f" of {num_prompts} prompts" if num_prompts > 1 else ""
        raise RequestError(f"n={num_choices}{prompts} are more requests than the {most} that this server takes at once "
                           "(max_batch_size + max_queued); ask for fewer", "n" if num_choices > most else "prompt")


@contextmanager
def _prompt_called(field: str) -> Iterator[None]:
    """Errors about the prompt name the field in which this endpoint has it."""
    try:
        yield
    except ContextLengthError as error:
        raise ContextLengthError(str(error), field) from None
    except RequestError as error:
        if error.field != "prompt":
            raise
        message = str(error)
        raise RequestError(field + message.removeprefix("prompt") if message.startswith("prompt") else message,
                           field) from None


def choices(context: ApiContext, field: str, token_ids: Sequence[int], sampling: SamplingParams, num_choices: int = 1,
            prompt_logprobs: int | None = None) -> list[GenerateRequest]:
    """The requests of `num_choices` completions of one prompt; the seed, where there is one, grows by one for each.

    field            of the endpoint that has the prompt
    prompt_logprobs  see GenerateRequest
    Raises ContextLengthError and RequestError."""
    with _prompt_called(field):
        context.engine.check_length(len(token_ids))
    resolved = context.front_end.resolved(sampling)
    made = []
    for index in range(num_choices):
        seeded = resolved
        if index and resolved.seed is not None:
            seeded = dataclasses.replace(resolved, seed=(resolved.seed + index) % (MAX_SEED + 1))
        made.append(GenerateRequest(UNNAMED, tuple(token_ids), seeded, prompt_logprobs=prompt_logprobs))
    return made


async def generate(context: ApiContext, field: str, answer_id: str, requests: Sequence[GenerateRequest],
                   continues_prompt: bool = False,
                   has_tools: bool = False) -> AsyncGenerator[tuple[int, TextOutput], None]:
    """(index of the request, increment of its text) until each has had one with a finish_reason.

    field             of the endpoint that has the prompt
    answer_id         names the requests: with it EngineClient.abort_group ends them all, with finish_reason abort
    continues_prompt, has_tools  see TextFrontEnd.answer
    Leave it with `aclosing`: what still runs is ended on the engine. Raises what the engine refuses a request with."""
    requests = [dataclasses.replace(request, request_id=f"{answer_id}/{index}")
                for index, request in enumerate(requests)]
    with _prompt_called(field):
        if len(requests) == 1:
            async with aclosing(_one(context, requests[0], continues_prompt, has_tools)) as increments:
                async for increment in increments:
                    yield 0, increment
            return
        async with aclosing(_many(context, requests, continues_prompt, has_tools)) as numbered:
            async for pair in numbered:
                yield pair


async def _one(context: ApiContext, request: GenerateRequest, continues_prompt: bool,
               has_tools: bool) -> AsyncGenerator[TextOutput, None]:
    answer = context.front_end.answer(request, continues_prompt, has_tools)
    async with aclosing(context.engine.generate(request)) as outputs:
        async for output in outputs:
            increment = answer.push(output)
            if answer.is_cut:
                await context.engine.finish(request, answer.num_kept_tokens)
            yield increment
            if increment.finish_reason is not None:
                return


async def _many(context: ApiContext, requests: Sequence[GenerateRequest], continues_prompt: bool,
                has_tools: bool) -> AsyncGenerator[tuple[int, TextOutput], None]:
    """Side by side; the first error ends all."""
    arrived: asyncio.Queue[tuple[int, TextOutput | Exception]] = asyncio.Queue()

    async def follow(index: int, request: GenerateRequest) -> None:
        try:
            async with aclosing(_one(context, request, continues_prompt, has_tools)) as increments:
                async for increment in increments:
                    arrived.put_nowait((index, increment))
        except Exception as error:
            arrived.put_nowait((index, error))

    tasks = [asyncio.create_task(follow(*numbered)) for numbered in enumerate(requests)]
    try:
        num_running = len(requests)
        while num_running:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            num_running -= item.finish_reason is not None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
