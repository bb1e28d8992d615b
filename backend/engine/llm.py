"""LLM: the engine in this process, for scripts and notebooks. Text in, text out, one or thousands at a time.

    from backend import LLM, SamplingParams
    llm = LLM("./workspace")
    print(llm.generate("Once upon a time", SamplingParams(max_new_tokens=64)).text)

Owns an engine and a text front end. Used by chat.py, benchmarks and users. Not for several threads at once."""

from __future__ import annotations

import itertools
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from backend.engine.engine import start_engine
from backend.engine.llm_input import (
    Prompt,
    as_conversations,
    as_prompts,
    check_session_id,
    is_conversation,
    one_sampling,
    one_sampling_each,
)
from backend.errors import EngineDeadError, RequestError
from backend.model_source import ModelSource, open_model
from backend.requests import FinishReason, GenerateRequest, SamplingParams, TokenLogprobs
from backend.text.front_end import Answer, Message, TextFrontEnd, TextOutput


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer. token_ids hold the id that ended it, text does not. logprobs: one per token if asked for."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()


class LLM:
    """A loaded model.

    model         a workspace, a Hugging Face folder, or an opened ModelSource
    model_name    built-in chat template for a folder that brings none
    model_format  hf, awq or llama, for a folder that must be of that one; None: as it is
    options       fields of EngineConfig, over what the workspace says: session_len, tp, device, dtype …
    Raises a MillraceError, in one line, for a model or option that cannot be used."""

    def __init__(self, model: str | Path | ModelSource, model_name: str | None = None, *,
                 model_format: str | None = None, **options: Any) -> None:
        is_path = isinstance(model, (str, Path))
        self.source = open_model(model, model_name, model_format) if is_path else model
        self.config = self.source.engine.with_options(options)
        self.front_end = TextFrontEnd(self.source)
        self.engine = start_engine(self.source, self.config)
        self._answers: dict[str, tuple[GenerateRequest, Answer]] = {}
        self._streams: dict[str, deque[TextOutput]] = {}
        self._abandoned: deque[str] = deque()  # requests of streams that nobody holds any more
        self._request_numbers = itertools.count()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model; worker processes end."""
        self.engine.close()

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 sampling: SamplingParams | Sequence[SamplingParams] | None = None, *,
                 show_progress: bool = True) -> Completion | list[Completion]:
        """Completes one prompt (text or token ids) or a list of them; a list gives a list, in its order.

        sampling  for all prompts, or one for each; None: the defaults. A bar is shown for more than one prompt."""
        several, is_one = as_prompts(prompts)
        ids = [self.front_end.prompt_ids(prompt) for prompt in several]
        completions = self._complete(ids, one_sampling_each(sampling, len(ids)), show_progress, continues_prompt=True)
        return completions[0] if is_one else completions

    def chat(self, messages: Sequence[Message] | Sequence[Sequence[Message]], sampling: SamplingParams | None = None, *,
             session_id: int | None = None, tools: Sequence[Mapping[str, Any]] | None = None,
             show_progress: bool = True) -> Completion | list[Completion]:
        """Answers a conversation [{"role": …, "content": …}, …], or each of a list of them.

        session_id  the engine keeps this one conversation: give only what is new, and end_session when it is over
        tools       functions the model may call, as [{"name": …, "description": …, "parameters": …}, …]. A call is
                    text of the answer, its special tokens included; a session's first turn tells the model of them"""
        conversations, is_one = as_conversations(messages)
        if session_id is not None and not is_one:
            raise RequestError(f"session_id={session_id} is for one conversation, not for {len(conversations)}; "
                               "give one at a time, or leave session_id out")
        sampling = self.front_end.chat_sampling(one_sampling(sampling), tools)
        ids = [self._turn_ids(conversation, session_id, tools) for conversation in conversations]
        completions = self._complete(ids, [sampling] * len(ids), show_progress, continues_prompt=False,
                                     session_id=session_id)
        return completions[0] if is_one else completions

    def stream(self, prompt: Prompt | Sequence[Message], sampling: SamplingParams | None = None, *,
               session_id: int | None = None, tools: Sequence[Mapping[str, Any]] | None = None) -> Stream:
        """The answer in increments: to a prompt, or to a conversation given as messages.

        session_id, tools  as in chat
        Leaving the iteration early aborts the request. Streams may be read in turns; each drives the engine."""
        sampling = one_sampling(sampling)
        is_chat = is_conversation(prompt)
        if is_chat:
            sampling = self.front_end.chat_sampling(sampling, tools)
            ids = self._turn_ids(prompt, session_id, tools)
        else:
            check_session_id(session_id)
            several, is_one = as_prompts(prompt)
            if not is_one:
                raise RequestError("stream answers one prompt at a time; use generate for a list of them")
            ids = self.front_end.prompt_ids(several[0])
        request = self._add(ids, sampling, not is_chat, session_id)
        increments = self._streams[request.request_id] = deque()
        return Stream(self, request.request_id, increments)

    def end_session(self, session_id: int) -> None:
        """Forgets a conversation that the engine keeps. Raises SessionError if there is none of that id."""
        self._drop_abandoned()
        self.engine.end_session(session_id)

    def _turn_ids(self, messages: Sequence[Message], session_id: int | None,
                  tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        check_session_id(session_id)
        self._drop_abandoned()
        goes_on = session_id is not None and session_id in self.engine.scheduler.sessions
        if not goes_on:
            return self.front_end.chat_ids(messages, tools)
        if len(messages) != 1:
            raise RequestError(f"session {session_id} is under way, so it takes one new message at a time, "
                               f"not {len(messages)}; end_session starts it afresh")
        return self.front_end.turn_ids(messages[0], is_first=False)

    def _add(self, ids: Sequence[int], sampling: SamplingParams, continues_prompt: bool,
             session_id: int | None = None) -> GenerateRequest:
        self._drop_abandoned()
        request = GenerateRequest(str(next(self._request_numbers)), tuple(ids), self.front_end.resolved(sampling),
                                  session_id)
        self.engine.add_request(request)
        self._answers[request.request_id] = request, self.front_end.answer(request, continues_prompt)
        return request

    def _complete(self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams],
                  show_progress: bool, continues_prompt: bool, session_id: int | None = None) -> list[Completion]:
        parts: dict[str, list[TextOutput]] = {}
        try:
            for ids, params in zip(prompts, sampling, strict=True):
                parts[self._add(ids, params, continues_prompt, session_id).request_id] = []
            num_open, num_tokens = len(parts), 0
            with tqdm(total=num_open, unit="prompt", disable=not show_progress or num_open < 2) as bar:
                while num_open:
                    for part in self._step():
                        if part.output.request_id not in parts:
                            continue
                        parts[part.output.request_id].append(part)
                        num_tokens += len(part.output.token_ids)
                        if part.finish_reason is not None:
                            num_open -= 1
                            elapsed_s = bar.format_dict["elapsed"] or 1e-9
                            bar.set_postfix_str(f"{num_tokens / elapsed_s:,.0f} tokens/s", refresh=False)
                            bar.update()
            return [_completion(answer) for answer in parts.values()]
        finally:
            for request_id in parts:
                self._drop(request_id)

    def _step(self) -> list[TextOutput]:
        """One engine step; its increments are returned and, those of streams, queued for their readers."""
        with _interrupt_held():
            return self._undisturbed_step()

    def _undisturbed_step(self) -> list[TextOutput]:
        self._drop_abandoned()
        if not self.engine.has_work:
            raise EngineDeadError("an answer is awaited, but the engine has no work left")
        increments = []
        for output in self.engine.step():
            if output.request_id not in self._answers:
                continue
            request, answer = self._answers[output.request_id]
            increment = answer.push(output)
            increments.append(increment)
            if output.request_id in self._streams:
                self._streams[output.request_id].append(increment)
            if increment.finish_reason is not None:
                del self._answers[output.request_id]
                if answer.is_cut:
                    self.engine.finish(request.request_id, request.session_id, answer.num_kept_tokens)
        return increments

    def _drop(self, request_id: str) -> None:
        """Aborts the request if it still runs; what it would still say is not wanted."""
        self._streams.pop(request_id, None)
        if self._answers.pop(request_id, None) is not None:
            self.engine.abort(request_id)

    def _drop_abandoned(self) -> None:
        """Between the engine's acts: the garbage collector, which finds these, may run in the middle of one."""
        while self._abandoned:
            self._drop(self._abandoned.popleft())


class Stream:
    """The increments of one answer. Closed, it aborts its request and frees its session; left early or never read, it
    does so before the LLM is next used."""

    def __init__(self, llm: LLM, request_id: str, increments: deque[TextOutput]) -> None:
        self._llm = llm
        self._request_id = request_id
        self._increments = increments
        self._is_over = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TextOutput:
        if self._is_over:
            raise StopIteration
        try:
            while not self._increments:
                self._llm._step()
        except BaseException:
            self.close()
            raise
        increment = self._increments.popleft()
        if increment.finish_reason is not None:
            self.close()
        return increment

    def close(self) -> None:
        """Ends the answer; what was not read is lost."""
        if not self._is_over:
            self._is_over = True
            self._llm._drop(self._request_id)

    def __del__(self) -> None:
        if not self._is_over:
            self._llm._abandoned.append(self._request_id)


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """A first Ctrl-C is raised at the end, so that it never leaves a step half done; a second one at once.

    Only where Ctrl-C would raise KeyboardInterrupt here: in the main thread, under Python's own handler."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


def _completion(parts: Sequence[TextOutput]) -> Completion:
    last = parts[-1]
    return Completion(
        "".join(part.text for part in parts),
        tuple(token_id for part in parts for token_id in part.output.token_ids),
        last.finish_reason, last.output.num_prompt_tokens, last.output.num_cached_tokens,
        tuple(logprob for part in parts for logprob in part.output.logprobs))
