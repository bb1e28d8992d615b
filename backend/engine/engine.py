"""Engine: requests in, outputs out; one call of `step` is one turn of the loop plan → launch → finish an earlier one.

Owns the sequences' lives. Decides through scheduler.py and executes through an executor; up to executor.max_in_flight
steps are launched before the oldest one's tokens are read, so the device never waits for the host. Imports no torch
but through worker.executor, and only to start one."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque

from backend.config import EngineConfig, ModelConfig
from backend.engine.scheduler import ScheduledStep, Scheduler
from backend.engine.sequence import Sequence
from backend.errors import CapacityError, ContextLengthError, EngineDeadError, RequestError, SessionError
from backend.model_source import ModelSource
from backend.requests import EngineStats, FinishReason, GenerateOutput, GenerateRequest
from backend.steps import GrammarEnd, SampledToken
from backend.worker.executor import Executor, StepHandle, start_executor

logger = logging.getLogger(__name__)

PREEMPTION_WARNING_S = 10.0


class Engine:
    """executor runs step plans for `model`; end ids, sessions and limits follow `config`."""

    def __init__(self, model: ModelConfig, config: EngineConfig, executor: Executor) -> None:
        self.model = model
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config, executor.num_blocks)
        self._sequences: dict[str, Sequence] = {}
        self._in_flight: deque[tuple[ScheduledStep, StepHandle]] = deque()
        self._outputs: list[GenerateOutput] = []
        self._has_failed = False
        self._num_prompt_tokens = self._num_cached_tokens = self._num_completion_tokens = 0
        self._num_aborts = 0
        self._warned_at_s, self._warned_preemptions = time.monotonic(), 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._in_flight or self._outputs)

    def add_request(self, request: GenerateRequest) -> None:
        """Queues a request. Raises RequestError, SessionError or CapacityError, and then nothing has changed."""
        num_queued = self.scheduler.num_queued
        if num_queued >= self.config.max_queued:
            raise CapacityError(f"{num_queued} requests are waiting, as many as max_queued allows; try again later")
        self.expire_sessions()
        if request.request_id in self._sequences:
            raise RequestError(f"request id {request.request_id!r} is in use; give each request an id of its own")
        sessions = self.scheduler.sessions
        history = sessions.history(request)
        sampling = request.sampling
        self._check_ids(request)
        num_prompt = len(history) + len(request.token_ids)
        if num_prompt == 0:
            raise RequestError("the prompt is empty; give at least one token (the model's start id will do)",
                               "prompt")
        session_len = min(self.config.session_len, request.session_len or self.config.session_len)
        room = session_len - num_prompt
        max_new_tokens = max(room, 0) if sampling.max_new_tokens is None else sampling.max_new_tokens
        if max_new_tokens > room or (room == 0 and sampling.max_new_tokens is None):
            num_new = max(max_new_tokens, 1)
            raise ContextLengthError(
                f"{num_prompt} prompt tokens + {num_new} new token{'s' * (num_new > 1)} exceed "
                f"session_len={session_len}; shorten the prompt, ask for fewer new tokens or end the session")
        end_ids = frozenset(sampling.stop_ids if sampling.ignore_eos else
                            (*self.model.eos_token_ids, *sampling.stop_ids))
        seed = sampling.seed if sampling.seed is not None else sessions.seed(request)
        if seed is None:
            seed = secrets.randbits(63)
        sequence = Sequence(request, history, end_ids, max_new_tokens, seed)
        if request.session_id is not None:
            sessions.begin_turn(request)
        self._sequences[request.request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Ends a request at once; its blocks are free before the next step. Unknown or finished ids are no error."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._num_aborts += 1
            self._outputs.append(self._finish(sequence, (), FinishReason.ABORT))

    def abort_group(self, group: str) -> None:
        """Aborts the requests with the ids `group`/0, `group`/1 and so on. Raises RequestError if there is none."""
        named = [request_id for request_id in self._sequences if request_id.rpartition("/")[:2] == (group, "/")]
        if not named:
            raise RequestError(f"no request of {group!r} is under way")
        for request_id in named:
            self.abort(request_id)

    def finish(self, request_id: str, session_id: int | None, num_completion_tokens: int) -> None:
        """Ends a request whose text has reached a stop word; its session remembers only so many completion tokens.

        The session does so too where the request has ended by itself meanwhile."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, (), FinishReason.STOP)
        if session_id is not None:
            self.scheduler.sessions.cut_answer(session_id, request_id, num_completion_tokens)

    def stop_session(self, session_id: int, forget: bool = False) -> None:
        """Interrupts a session's running turn; what it generated so far stays. `forget` ends the session as well.

        Raises SessionError if it is unknown, or idle and not to be forgotten: then there is nothing to stop."""
        running = self.scheduler.sessions.running_request(session_id)
        if running is None and not forget:
            raise SessionError(f"session {session_id} is idle, so there is nothing to stop", "session_id")
        if forget:
            self.end_session(session_id)
        if running is not None:
            self.abort(running)

    def expire_sessions(self) -> None:
        """Forgets sessions that have been idle for longer than session_ttl_s."""
        self.scheduler.sessions.expire(self.config.session_ttl_s)

    def end_session(self, session_id: int) -> None:
        """Forgets a session; a running turn is not disturbed. Raises SessionError if the id is unknown."""
        self.scheduler.sessions.end(session_id)

    def step(self) -> list[GenerateOutput]:
        """Plans and launches the next step, then finishes the oldest launched one if enough are in flight.

        Raises EngineDeadError. A step that did not end, Ctrl-C included, ends the engine: blocks that it was to fill
        are already marked as filled, and would be read as if they were."""
        if self._has_failed:
            raise EngineDeadError("the engine ended in the middle of a step; load the model again")
        try:
            scheduled = self.scheduler.schedule()
            if scheduled is not None:
                self._in_flight.append((scheduled, self.executor.launch(scheduled.plan)))
            if self._in_flight and (scheduled is None or len(self._in_flight) >= self.executor.max_in_flight):
                self._read_oldest()
        except BaseException:
            self._has_failed = True
            self.executor.close()
            raise
        self._warn_of_preemptions()
        outputs, self._outputs = self._outputs, []
        return outputs

    def stats(self) -> EngineStats:
        """The books now, and the counts of all requests that have ended."""
        scheduler = self.scheduler
        return EngineStats(
            scheduler.blocks.num_blocks, scheduler.blocks.num_free, len(scheduler.running), len(scheduler.waiting),
            len(scheduler.sessions), scheduler.num_preemptions, self._num_prompt_tokens, self._num_cached_tokens,
            self._num_completion_tokens, self._num_aborts, scheduler.num_steps)

    def check_integrity(self) -> None:
        """AssertionError unless every block and row is accounted for."""
        self.scheduler.check_integrity()

    def close(self) -> None:
        self.executor.close()

    def _read_oldest(self) -> None:
        scheduled, handle = self._in_flight.popleft()
        result = handle.wait()
        self.scheduler.grammars.compiled(result.grammars)
        tokens = {token.row: token for token in result.tokens}
        prompts = {prompt.row: prompt for prompt in result.prompts}
        for sequence, row in zip(scheduled.sequences, scheduled.plan.rows, strict=True):
            if sequence.is_finished:
                continue  # it ended or was aborted while this step ran
            if row.row in prompts:
                sequence.take_prompt_logprobs(prompts[row.row].first, prompts[row.row].logprobs)
            if row.samples:
                self._outputs.append(self._take_token(sequence, tokens[row.row]))
            elif sequence.max_new_tokens == 0 and row.num_cached + row.num_new == sequence.num_prompt_tokens:
                self._outputs.append(self._finish(sequence, (), FinishReason.LENGTH))

    def _take_token(self, sequence: Sequence, token: SampledToken) -> GenerateOutput:
        if token.grammar_end is not None:
            return self._end_of_grammar(sequence, token.grammar_end)
        reason = sequence.append(token.token_id)
        self.scheduler.publish_full_blocks(sequence)
        if reason is not None:
            return self._finish(sequence, (token,), reason)
        return _output(sequence, (token,), None)

    def _end_of_grammar(self, sequence: Sequence, end: GrammarEnd) -> GenerateOutput:
        """Its grammar was complete before this token; where it could not be followed, what there is of it is cut."""
        if not end.fault:
            return self._finish(sequence, (), FinishReason.STOP)
        logger.warning("request %s ends after %d tokens: its grammar could not be followed any further (%s)",
                       sequence.request_id, sequence.num_completion_tokens, end.fault)
        return self._finish(sequence, (), FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, tokens: tuple[SampledToken, ...], reason: FinishReason) -> GenerateOutput:
        del self._sequences[sequence.request_id]
        if sequence.was_admitted:
            self._num_prompt_tokens += sequence.num_prompt_tokens
            self._num_cached_tokens += sequence.num_cached_prompt_tokens
        self._num_completion_tokens += sequence.num_completion_tokens
        self.scheduler.remove(sequence)
        return _output(sequence, tokens, reason)

    def _check_ids(self, request: GenerateRequest) -> None:
        sampling = request.sampling
        named = {"prompt": request.token_ids, "stop_ids": sampling.stop_ids,
                 "bad_words": [token_id for word in sampling.bad_words for token_id in word],
                 "logit_bias": [token_id for token_id, _ in sampling.logit_bias]}
        for name, ids in named.items():
            if ids and not (min(ids) >= 0 and max(ids) < self.model.vocab_size):
                wrong = next(token_id for token_id in ids if not 0 <= token_id < self.model.vocab_size)
                raise RequestError(f"{name} holds token id {wrong}, but the vocabulary ends at "
                                   f"{self.model.vocab_size - 1}; use the ids of this model's tokenizer", name)

    def _warn_of_preemptions(self) -> None:
        count = self.scheduler.num_preemptions - self._warned_preemptions
        elapsed_s = time.monotonic() - self._warned_at_s
        if count and elapsed_s >= PREEMPTION_WARNING_S:
            logger.warning("preempted %d sequences in the last %.0f s: the KV cache is full; "
                           "lower max_batch_size or raise cache_max_entry_count", count, elapsed_s)
            self._warned_at_s, self._warned_preemptions = time.monotonic(), self.scheduler.num_preemptions


def start_engine(source: ModelSource, config: EngineConfig) -> Engine:
    """Loads the model, its memory plan logged and enforced. Raises what worker.executor.start_executor raises."""
    return Engine(source.model, config, start_executor(source, config))


def _output(sequence: Sequence, tokens: tuple[SampledToken, ...], reason: FinishReason | None) -> GenerateOutput:
    prompt_ids, sequence.prompt_to_echo = sequence.prompt_to_echo, ()
    prompt_logprobs, sequence.prompt_logprobs = tuple(sequence.prompt_logprobs), []
    return GenerateOutput(
        sequence.request_id, tuple([token.token_id for token in tokens]), reason, sequence.num_prompt_tokens,
        sequence.num_cached_prompt_tokens or 0, sequence.num_completion_tokens,
        tuple([token.logprobs for token in tokens if token.logprobs is not None]), prompt_ids,
        prompt_logprobs, sequence.times.news(bool(tokens)))
