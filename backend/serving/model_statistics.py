"""Model statistics: how many requests a model answered, and how long they took.

Counts are of requests, for decoupled models too; a cancelled request counts as failed. No queue time: requests queue
in the engine, which has metrics of its own. Used by inference.py (counts) and model_repository.py (shows)."""

from __future__ import annotations

import time

from tritonclient.grpc import service_pb2

from backend.serving.model_config import VERSION


class ModelStatistics:
    """Counters of one model since the server started; not thread-safe, since one event loop owns them."""

    def __init__(self, name: str):
        self._name = name
        self._success_count = self._success_ns = 0
        self._fail_count = self._fail_ns = 0
        self._last_ms = 0

    def count_success(self, duration_ns: int) -> None:
        """A request was answered to its end."""
        self._success_count += 1
        self._success_ns += duration_ns
        self._last_ms = time.time_ns() // 1_000_000

    def count_failure(self, duration_ns: int) -> None:
        """A request that reached the model failed or was cancelled."""
        self._fail_count += 1
        self._fail_ns += duration_ns

    def as_message(self) -> service_pb2.ModelStatistics:
        """The counts as KServe's message."""
        success = service_pb2.StatisticDuration(count=self._success_count, ns=self._success_ns)
        return service_pb2.ModelStatistics(
            name=self._name,
            version=VERSION,
            last_inference=self._last_ms,
            inference_count=self._success_count,
            execution_count=self._success_count,
            inference_stats=service_pb2.InferStatistics(
                success=success,
                fail=service_pb2.StatisticDuration(count=self._fail_count, ns=self._fail_ns),
                compute_infer=success,
            ),
        )
