"""Request record: what one call at the server's door became, for its log line, its timing header and its trace.

A call may run several requests on the engine (choices, prompts); each is an EngineRun. The record of the call that the
current task answers is in a context variable, so that nothing between door and engine has to hand it on. Used by
metrics.py, operations.py, request_log.py and tracing.py. Imports no torch."""

from __future__ import annotations

import time
from contextvars import ContextVar

from backend.requests import GenerateOutput, RequestTiming

current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


class EngineRun:
    """One request on the engine as its front end sees it; seconds on the clock of time.perf_counter.

    outcome  a FinishReason's value or the name of an error's class; empty while it runs"""

    __slots__ = ("began_s", "ended_s", "first_token_s", "last_token_s", "num_cached_tokens", "num_completion_tokens",
                 "num_prompt_tokens", "outcome", "timing")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.first_token_s = self.last_token_s = self.ended_s = 0.0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_completion_tokens = 0
        self.outcome = ""
        self.timing: RequestTiming | None = None

    def take(self, output: GenerateOutput, now_s: float) -> None:
        """An output arrived."""
        if output.timing is not None:
            self.timing = output.timing
        if output.token_ids:
            self.last_token_s = now_s
            if not self.first_token_s:
                self.first_token_s = now_s
        self.num_prompt_tokens, self.num_cached_tokens = output.num_prompt_tokens, output.num_cached_tokens
        self.num_completion_tokens = output.num_completion_tokens

    def phases(self) -> list[tuple[str, float, float]]:
        """(name, begin, end) of what it went through: queued, prefill, decode."""
        if self.timing is None or not self.first_token_s:
            return []
        prefill_begins_s = self.first_token_s - self.timing.prefill_s
        return [("queued", prefill_begins_s - self.timing.queued_s, prefill_begins_s),
                ("prefill", prefill_begins_s, self.first_token_s),
                ("decode", self.first_token_s, self.last_token_s)]

    @property
    def decode_s(self) -> float:
        """From the first to the last token, preemptions taken out."""
        return max(self.last_token_s - self.first_token_s - (self.timing.preempted_s if self.timing else 0.0), 0.0)


class RequestRecord:
    """One call. request_id: the client's, or one of our own. runs: what it did on the engine so far."""

    __slots__ = ("began_s", "request_id", "runs")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.began_s = time.perf_counter()
        self.runs: list[EngineRun] = []

    def timing(self) -> dict[str, float]:
        """Seconds queued, in prefill, decoding and preempted: the longest of each where there are several runs."""
        timings = [run.timing for run in self.runs if run.timing is not None]
        return {
            "queued": max((timing.queued_s for timing in timings), default=0.0),
            "prefill": max((timing.prefill_s for timing in timings), default=0.0),
            "decode": max((run.decode_s for run in self.runs), default=0.0),
            "preempted": max((timing.preempted_s for timing in timings), default=0.0),
        }
