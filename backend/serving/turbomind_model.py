"""`turbomind`: token ids in, token ids out, with the session flags of 2023. The folder of its config is `interactive`.

A session is named by CORRID and moved along by START, END and STOP; docs/serving.md has the table of what each order
of them does. Used by served_models.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np

from backend.engine.engine_client import EngineClient
from backend.errors import RequestError, SessionError
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, SamplingParams
from backend.serving.inputs import Inputs
from backend.serving.served_model import InferContext, Tensors
from backend.text.front_end import TextFrontEnd
from protocol.models import TURBOMIND

# Inputs of the 2023 contract that its engine never read, with the values that mean "off".
_OFF_VALUES = {"beam_width": (1,), "beam_search_diversity_rate": (0.0,), "len_penalty": (0.0, 1.0),
               "prompt_learning_task_name_ids": (0,), "top_p_decay": (0.0, 1.0), "top_p_min": (0.0,),
               "top_p_reset_ids": (0,)}


class TurbomindModel:
    """One generation, or one session command, per request."""

    name = TURBOMIND

    def __init__(self, front_end: TextFrontEnd, engine: EngineClient) -> None:
        self._front_end = front_end
        self._engine = engine

    async def infer(self, tensors: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """See ServedModel.infer. Each response repeats the whole sequence; `new_ids` brings only what is new."""
        inputs = Inputs(tensors)
        self._refuse_what_is_not_implemented(inputs)
        session_id = inputs.scalar("CORRID")
        starts, ends, stops = (bool(inputs.scalar(name, default)) for name, default in
                               (("START", 1), ("END", 1), ("STOP", 0)))
        if session_id is None and not (starts and ends and not stops):
            raise SessionError("START, END and STOP speak of a session, so CORRID has to name it")
        if stops:
            if starts:
                raise SessionError(f"session {session_id}: START and STOP together mean nothing; send one of them")
            await self._engine.stop_session(session_id, forget=ends)
            yield self._empty_response()
            return
        token_ids = self._token_ids(inputs)
        if ends and not starts and not token_ids and inputs.scalar("request_output_len") == 0:
            await self._engine.end_session(session_id)
            yield self._empty_response()
            return
        request, stop_sequences = self._request(inputs, token_ids, session_id, starts, ends)
        answer = _Sequence(self._engine.session_len, context, stop_sequences)
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                response = answer.response(output)
                if answer.num_stopped_tokens is not None and output.finish_reason is None:
                    await self._engine.finish(request, answer.num_stopped_tokens)
                    yield response
                    return
                yield response

    def _request(self, inputs: Inputs, token_ids: tuple[int, ...], session_id: int | None, starts: bool, ends: bool
                 ) -> tuple[GenerateRequest, tuple[tuple[int, ...], ...]]:
        words = inputs.words("stop_words_list")
        end_id = inputs.scalar("end_id")
        model_ends = self._front_end.model.eos_token_ids if end_id is None else (end_id,)
        stop_ids = (*model_ends, *(word[0] for word in words if len(word) == 1))
        defaults = SamplingParams()
        sampling = SamplingParams(
            max_new_tokens=inputs.scalar("request_output_len"),
            temperature=inputs.scalar("temperature", defaults.temperature),
            top_k=inputs.scalar("runtime_top_k", defaults.top_k),
            top_p=inputs.scalar("runtime_top_p", defaults.top_p),
            repetition_penalty=inputs.scalar("repetition_penalty", defaults.repetition_penalty),
            seed=inputs.scalar("random_seed"), stop_ids=stop_ids, ignore_eos=True,
            bad_words=inputs.words("bad_words_list"),
            logprobs=0 if inputs.scalar("is_return_log_probs", False) else None)
        step = inputs.scalar("step", -1)
        # A 2023 client counts every end id but EOS as part of the session, and steps back over EOS alone.
        kept = tuple(token_id for token_id in stop_ids if token_id != self._front_end.tokenizer.eos_token_id)
        request = GenerateRequest(
            self._engine.new_request_id(), token_ids, sampling, session_id, session_start=starts,
            session_step=None if step < 0 or starts else step, end_session=ends,
            session_len=inputs.scalar("session_len"), kept_end_ids=kept, echo_prompt=True)
        return request, tuple(word for word in words if len(word) > 1)

    def _token_ids(self, inputs: Inputs) -> tuple[int, ...]:
        size, length = inputs.size("input_ids"), inputs.scalar("input_lengths")
        if length > size:
            raise RequestError(f"input_lengths is {length}, but input_ids holds {size} tokens")
        self._engine.check_length(length)
        return inputs.ids("input_ids", length)

    def _refuse_what_is_not_implemented(self, inputs: Inputs) -> None:
        off_values = {**_OFF_VALUES, "start_id": (self._front_end.model.bos_token_id,)}
        for name, allowed in off_values.items():
            value = inputs.scalar(name, allowed[0])
            if value not in allowed:
                raise RequestError(f"{name}={value} is not implemented; leave it out, or send {allowed[0]}")

    def _empty_response(self) -> dict[str, np.ndarray]:
        """The answer to a session command: no tokens, as in 2023."""
        return {"output_ids": np.zeros((1, 1, 1), np.uint32), "sequence_length": np.zeros((1, 1), np.uint32),
                "new_ids": np.zeros((1, 0), np.uint32), "cached_tokens": np.zeros((1, 1), np.uint32),
                "cum_log_probs": np.zeros((1, 1), np.float32), "output_log_probs": np.zeros((1, 1, 0), np.float32),
                "finish_reason": _text(FinishReason.ABORT.value)}


class _Sequence:
    """A sequence as it grows, in the shapes of the wire."""

    def __init__(self, session_len: int, context: InferContext, stop_sequences: tuple[tuple[int, ...], ...]) -> None:
        self._ids = np.zeros((1, 1, session_len), np.uint32)
        self._length = 0
        self._num_prompt = 0
        self._context = context
        self._stop_sequences = stop_sequences
        self._logprobs: list[float] = []
        self.num_stopped_tokens: int | None = None  # completion tokens, once a stop sequence has ended it

    def response(self, output: GenerateOutput) -> dict[str, np.ndarray]:
        """The whole sequence so far, and what is new."""
        if output.prompt_ids:
            self._append(output.prompt_ids)
            self._num_prompt = self._length
        self._append(output.token_ids)
        self._logprobs += [entry.logprob for entry in output.logprobs]
        reason = output.finish_reason
        if reason is None and self._ends_with_a_stop_sequence():
            self.num_stopped_tokens = self._length - self._num_prompt
            reason = FinishReason.STOP
        tensors = {
            "sequence_length": np.array([[self._length]], np.uint32),
            "new_ids": np.array([output.token_ids], np.uint32).reshape(1, -1),
            "cached_tokens": np.array([[output.num_cached_tokens]], np.uint32),
            "finish_reason": _text(reason.value if reason else "")}
        if self._context.wants("output_ids"):
            tensors["output_ids"] = self._ids.copy()
        if self._context.wants("output_log_probs"):
            tensors["output_log_probs"] = np.array([[self._logprobs]], np.float32).reshape(1, 1, -1)
        if self._context.wants("cum_log_probs"):
            tensors["cum_log_probs"] = np.array([[sum(self._logprobs)]], np.float32)
        return tensors

    def _append(self, token_ids: tuple[int, ...]) -> None:
        self._ids[0, 0, self._length:self._length + len(token_ids)] = token_ids
        self._length += len(token_ids)

    def _ends_with_a_stop_sequence(self) -> bool:
        completion = self._ids[0, 0, self._num_prompt:self._length]
        return any(len(word) <= len(completion) and tuple(completion[-len(word):].tolist()) == word
                   for word in self._stop_sequences)


def _text(value: str) -> np.ndarray:
    return np.array([[value.encode()]], object)
