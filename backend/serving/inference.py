"""Inference: the requests of one server that are with their models now.

Owns each one's deadline, statistics, the closing of its generator, and the end of all when the server stops. Whatever
a model raises leaves here as a MillraceError. Used by kserve_grpc.py, infer_stream.py and kserve_http.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np

from backend.errors import DeadlineError, MillraceError
from backend.serving.deadline import Deadline
from backend.serving.infer_request import InferCall
from backend.serving.protocol_error import ProtocolError
from backend.serving.running_tasks import RunningTasks

logger = logging.getLogger(__name__)


class Inference:
    """The running requests of the server named `server_name`; belongs to one event loop."""

    def __init__(self, server_name: str):
        self._server_name = server_name
        self._running = RunningTasks()

    @property
    def is_stopping(self) -> bool:
        """Whether no more requests are taken."""
        return self._running.is_stopping

    def refuse_when_stopping(self) -> None:
        """Raises ProtocolError UNAVAILABLE from the moment on that `stop` was called."""
        if self._running.is_stopping:
            raise ProtocolError("UNAVAILABLE", f"{self._server_name} server is shutting down and has stopped accepting "
                                "new requests.")

    @contextlib.asynccontextmanager
    async def answering(self, call: InferCall) -> AsyncIterator[AsyncGenerator[dict[str, np.ndarray], None]]:
        """The model's responses, to be read by the task that entered, which is cancelled at the deadline.

        Raises a MillraceError for whatever goes wrong in the model or in the body."""
        task = asyncio.current_task()
        began_ns = time.perf_counter_ns()
        responses = call.model.served.infer(call.inputs, call.context)
        deadline = Deadline(task.cancel)
        if call.context.timeout_s is not None:
            deadline.limit(call.context.timeout_s)
        self._running.add(task)
        is_complete = False
        try:
            yield responses
            is_complete = True
        except asyncio.CancelledError:
            # Who cancelled? Our own deadline or stop has an answer to give; a client that left has nobody to read it.
            if deadline.is_over:
                raise DeadlineError(f"the answer was not complete within the request's timeout of "
                                    f"{call.context.timeout_s:g} s") from None
            if self._running.is_aborting:
                raise ProtocolError("UNAVAILABLE", f"{self._server_name} server stopped before the answer was "
                                    "complete") from None
            raise
        except MillraceError:
            raise
        except Exception as error:
            logger.exception("model '%s' failed on request %r", call.model.spec.name, call.context.request_id)
            reason = (str(error).splitlines() or [""])[0]
            raise ProtocolError("INTERNAL", f"{type(error).__name__}: {reason}") from error
        finally:
            deadline.close()
            self._running.discard(task)
            duration_ns = time.perf_counter_ns() - began_ns
            statistics = call.model.statistics
            (statistics.count_success if is_complete else statistics.count_failure)(duration_ns)
            await _close(responses, call)

    async def stop(self, grace_s: float) -> None:
        """Refuses new requests, waits for the running ones, and ends those that take longer than `grace_s`."""
        await self._running.stop(grace_s)


async def only_response(responses: AsyncGenerator[dict[str, np.ndarray], None]) -> dict[str, np.ndarray]:
    """The response of a model that is not decoupled. Raises ProtocolError INTERNAL where there is none."""
    async for outputs in responses:
        return outputs
    raise ProtocolError("INTERNAL", "the model gave no response")


async def _close(responses: AsyncGenerator[dict[str, np.ndarray], None], call: InferCall) -> None:
    try:
        await responses.aclose()
    except Exception:  # the answer stands whatever its model does afterwards
        logger.exception("model '%s' failed while request %r was closed", call.model.spec.name,
                         call.context.request_id)
