"""`chat`: a message or a conversation in, text out as it comes, so that a client needs one call for a turn.

With CORRID the conversation is a session that the engine holds, and a turn brings only what is new; without it the
whole conversation comes with each request. Used by served_models.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np

from backend.engine.engine_client import EngineClient
from backend.errors import RequestError, SessionError, UnknownSessionError
from backend.requests import FinishReason, GenerateRequest, SamplingParams
from backend.serving.inputs import Inputs
from backend.serving.long_text import num_characters, read_text
from backend.serving.served_model import InferContext, Tensors
from backend.text.front_end import TextFrontEnd
from protocol.models import CHAT


class ChatModel:
    """One turn, or one session command, per request."""

    name = CHAT

    def __init__(self, front_end: TextFrontEnd, engine: EngineClient) -> None:
        self._front_end = front_end
        self._engine = engine

    async def infer(self, tensors: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """See ServedModel.infer. Responses bring increments of text; the last one brings the finish reason."""
        inputs = Inputs(tensors)
        session_id = inputs.scalar("CORRID")
        start, ends, stops = inputs.scalar("START"), bool(inputs.scalar("END", 0)), bool(inputs.scalar("STOP", 0))
        messages, tools = self._messages(inputs), inputs.json_list("TOOLS")
        if session_id is None and (start == 0 or ends or stops or inputs.has("STEP")):
            raise SessionError("START, END, STOP and STEP speak of a session, so CORRID has to name it")
        if stops or (ends and messages is None):
            if start or messages is not None:
                raise SessionError(f"session {session_id}: STOP takes neither START nor a message")
            await (self._engine.stop_session(session_id, forget=ends) if stops
                   else self._engine.end_session(session_id))
            yield _response("", FinishReason.ABORT if stops else FinishReason.STOP)
            return
        if messages is None:
            raise RequestError("there is nothing to answer; send PROMPT or MESSAGES")
        can_go_on = inputs.scalar("STEP") == 0 or (len(messages) == 1 and not tools)
        if start is None and session_id is not None and can_go_on:
            # Neither said: go on where the session is known, else begin it.
            try:
                async with aclosing(self._turn(inputs, messages, tools, session_id, False, ends)) as responses:
                    async for response in responses:
                        yield response
                return
            except UnknownSessionError:
                pass
        starts = start is None or bool(start)
        async with aclosing(self._turn(inputs, messages, tools, session_id, starts, ends, start is None)) as responses:
            async for response in responses:
                yield response

    async def _turn(self, inputs: Inputs, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None,
                    session_id: int | None, starts: bool, ends: bool, is_new: bool = False
                    ) -> AsyncGenerator[dict[str, np.ndarray], None]:
        front_end = self._front_end
        step = None if starts else inputs.scalar("STEP")
        if starts or step == 0:
            token_ids = await read_text(num_characters(messages, tools), front_end.chat_ids, messages, tools)
        else:
            if len(messages) != 1 or tools:
                raise RequestError(f"session {session_id} is under way, so it takes one new message and no new tools; "
                                   "START=1 begins it afresh")
            token_ids = await read_text(num_characters(messages), front_end.turn_ids, messages[0], False)
        sampling = self._sampling(inputs, tools)
        sampling = await read_text(num_characters(sampling.bad_words), front_end.resolved, sampling)
        request = GenerateRequest(
            self._engine.new_request_id(), tuple(token_ids), sampling, session_id,
            session_start=starts if session_id is not None else None, session_is_new=is_new, session_step=step,
            end_session=ends)
        answer = front_end.answer(request, continues_prompt=False)
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                increment = answer.push(output)
                if answer.is_cut:
                    await self._engine.finish(request, answer.num_kept_tokens)
                if increment.text or increment.finish_reason is not None:
                    yield _response(increment.text, increment.finish_reason, output.num_prompt_tokens,
                                    output.num_cached_tokens, output.num_completion_tokens,
                                    output.num_prompt_tokens + increment.num_kept_tokens)
                if increment.finish_reason is not None:
                    return

    def _messages(self, inputs: Inputs) -> list[dict[str, Any]] | None:
        prompt, messages = inputs.text("PROMPT"), inputs.json_list("MESSAGES")
        if prompt is not None and messages is not None:
            raise RequestError("PROMPT and MESSAGES exclude each other; send one of them")
        return messages if prompt is None else [{"role": "user", "content": prompt}]

    def _sampling(self, inputs: Inputs, tools: list[dict[str, Any]] | None) -> SamplingParams:
        given = {field: inputs.scalar(name) for name, field in _SAMPLING.items() if inputs.has(name)}
        sampling = SamplingParams(**{"skip_special_tokens": not tools, **given}, stop=inputs.texts("STOP_WORDS"),
                                  bad_words=inputs.texts("BAD_WORDS"))
        return self._front_end.chat_sampling(sampling)


_SAMPLING = {"MAX_NEW_TOKENS": "max_new_tokens", "MIN_NEW_TOKENS": "min_new_tokens", "TEMPERATURE": "temperature",
             "TOP_K": "top_k", "TOP_P": "top_p", "MIN_P": "min_p", "REPETITION_PENALTY": "repetition_penalty",
             "PRESENCE_PENALTY": "presence_penalty", "FREQUENCY_PENALTY": "frequency_penalty", "SEED": "seed",
             "IGNORE_EOS": "ignore_eos", "SKIP_SPECIAL_TOKENS": "skip_special_tokens"}


def _response(text: str, reason: FinishReason | None, num_prompt: int = 0, num_cached: int = 0, num_completion: int = 0,
              num_session: int = 0) -> dict[str, np.ndarray]:
    numbers = {"PROMPT_TOKENS": num_prompt, "CACHED_TOKENS": num_cached, "COMPLETION_TOKENS": num_completion,
               "SESSION_TOKENS": num_session}
    return {"TEXT": np.array([[text.encode()]], object),
            "FINISH_REASON": np.array([[(reason.value if reason else "").encode()]], object),
            **{name: np.array([[number]], np.uint32) for name, number in numbers.items()}}
