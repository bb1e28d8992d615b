"""Runners: an engine as the workloads see it, and Millrace as one. The other engines are in peers.py.

Used by throughput.py and workloads.py."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Protocol

import torch

from backend.config import EngineConfig
from backend.engine.engine import start_engine
from backend.model_source import ModelSource
from backend.requests import GenerateRequest, SamplingParams

KV_SHARE = 0.93  # of the memory that is free after the weights


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with. session_len: the longest prompt + completion, in tokens."""

    session_len: int
    max_batch_size: int
    quant_policy: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished run.

    num_tokens     new tokens of each request
    seconds        wall clock from the first request to the last token
    first_token_s  wall clock to the first token of any request; None where the engine does not tell"""

    num_tokens: list[int]
    seconds: float
    first_token_s: float | None = None


class Runner(Protocol):
    """An engine under test.

    compiles_per_shape  whether work of a new shape is slow the first time
    tests               names of the tests that it can do in reasonable time; None for all"""

    compiles_per_shape: bool
    tests: tuple[str, ...] | None

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        """Runs requests that are all there at once, greedily, ends ignored, until each has its new tokens."""
        ...

    def close(self) -> None:
        """Frees the GPU."""
        ...


class MillraceRunner:
    """Our engine in this process, with everything on that is on by default."""

    compiles_per_shape = False
    tests = None

    def __init__(self, source: ModelSource, settings: Settings, cuda_graphs: bool = True) -> None:
        config = EngineConfig(
            session_len=settings.session_len, max_batch_size=settings.max_batch_size, cache_max_entry_count=KV_SHARE,
            quant_policy=settings.quant_policy, cuda_graphs=cuda_graphs)
        self.engine = start_engine(source, config)
        self._num_runs = 0

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        """See Runner.generate."""
        self._num_runs += 1
        requests = [
            GenerateRequest(f"{self._num_runs}.{number}", prompt,
                            SamplingParams(temperature=0, max_new_tokens=num_new, ignore_eos=True))
            for number, (prompt, num_new) in enumerate(zip(prompts, new_tokens, strict=True))]
        counts = {request.request_id: 0 for request in requests}
        first_token_s = None
        begin = time.perf_counter()
        for request in requests:
            self.engine.add_request(request)
        while self.engine.has_work:
            for output in self.engine.step():
                counts[output.request_id] += len(output.token_ids)
                if first_token_s is None:
                    first_token_s = time.perf_counter() - begin
        return Generation(list(counts.values()), time.perf_counter() - begin, first_token_s)

    def close(self) -> None:
        """See Runner.close."""
        self.engine.close()
        del self.engine
        gc.collect()
        torch.cuda.empty_cache()
