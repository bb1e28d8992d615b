"""Sequence: prompt and generated ids of one generation, with its block table and how far it has come.

Plain state; scheduler.py moves it along, session.py keeps it between turns. Imports no torch."""

from __future__ import annotations

from enum import Enum

from backend.engine.request_times import RequestTimes
from backend.requests import FinishReason, GenerateRequest, TokenLogprobs


class SequenceStatus(Enum):
    WAITING = "waiting"  # queued, holds no row
    RUNNING = "running"  # holds a row and blocks
    FINISHED = "finished"  # late results for it are dropped


class Sequence:
    """One generation.

    token_ids      prompt (its session's history first) and completion, as far as the host knows them
    num_pending    tokens sampled on the device whose ids have not been read yet
    num_cached     tokens whose KV is stored, or will be by the steps already launched
    block_table    logical block index → physical block;  digests: of its full blocks, as far as published
    prompt_logprobs      where wanted, of the prompt's tokens after the first, until an output has taken them along
    num_prompt_logprobs  how many have been computed
    end_ids        ids that end it;  max_new_tokens: resolved against session_len;  seed: resolved"""

    def __init__(self, request: GenerateRequest, history: list[int], end_ids: frozenset[int], max_new_tokens: int,
                 seed: int) -> None:
        self.request_id = request.request_id
        self.session_id = request.session_id
        self.sampling = request.sampling
        self.token_ids = [*history, *request.token_ids]
        self.num_history_tokens = len(history)
        self.num_prompt_tokens = len(self.token_ids)
        self.prompt_to_echo = tuple(self.token_ids) if request.echo_prompt else ()  # until the first output
        self.wanted_prompt_logprobs = request.prompt_logprobs
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.num_prompt_logprobs = 0
        self.end_ids = end_ids
        self.kept_end_ids = frozenset(request.kept_end_ids)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.status = SequenceStatus.WAITING
        self.row: int | None = None
        self.num_pending = 0
        self.num_cached = 0
        self.num_cached_prompt_tokens: int | None = None  # known when it is first admitted
        self.block_table: list[int] = []
        self.digests: list[bytes] = []
        self.times = RequestTimes()
        self.forgets_last = False  # it ended by an id that its session does not remember

    @property
    def was_admitted(self) -> bool:
        return self.num_cached_prompt_tokens is not None

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether its prompt has to be computed where its KV is cached, too: logprobs of it are still missing."""
        return self.wanted_prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_cached

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    @property
    def wants_no_more(self) -> bool:
        """Launched steps already sample its last allowed token."""
        return 0 < self.max_new_tokens <= len(self.token_ids) + self.num_pending - self.num_prompt_tokens

    def take_prompt_logprobs(self, first: int, logprobs: tuple[TokenLogprobs, ...]) -> None:
        """Those of the tokens from position `first` on; after a preemption some come again."""
        new = logprobs[self.num_prompt_logprobs - (first - 1):]
        self.prompt_logprobs += new
        self.num_prompt_logprobs += len(new)

    def append(self, token_id: int) -> FinishReason | None:
        """Takes a token that was pending; returns why the sequence ends with it, if it does."""
        self.num_pending -= 1
        self.token_ids.append(token_id)
        num_completion_tokens = self.num_completion_tokens
        if token_id in self.end_ids and num_completion_tokens > self.sampling.min_new_tokens:
            self.forgets_last = token_id not in self.kept_end_ids
            return FinishReason.STOP
        if num_completion_tokens >= self.max_new_tokens:
            return FinishReason.LENGTH
        return None
