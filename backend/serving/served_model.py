"""Served model: what both servers, the embedded one and Triton Inference Server, see of a model.

A dict of arrays in, an async stream of dicts of arrays out. Arrays carry the leading batch axis of size 1 that
`max_batch_size: 1` gives them on the wire, after the `reshape` of config.pbtxt (a scalar arrives as [1]); STRING
tensors are numpy object arrays of bytes. A model that is not decoupled yields exactly once. Errors are MillraceErrors;
each server maps them to its status by `status_of`. Implemented by served_models.py, called by kserve_grpc.py,
kserve_http.py and tritonserver.py. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backend.errors import (
    CapacityError,
    DeadlineError,
    EngineDeadError,
    MillraceError,
    RequestError,
    SessionError,
    TemplateError,
)

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class InferContext:
    """What a request carries besides tensors.

    request_id  the caller's own, for messages; may be empty, need not be unique
    timeout_s   seconds from now by which the answer has to be complete; None: no limit
    outputs     names of the outputs that the caller asked for, so that costly others can be left out; None: all"""

    request_id: str = ""
    timeout_s: float | None = None
    outputs: frozenset[str] | None = None

    def wants(self, output: str) -> bool:
        return self.outputs is None or output in self.outputs


class ServedModel(Protocol):
    """A model by its name in config.pbtxt."""

    name: str

    def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """The responses to one request. Closing the generator cancels the request and frees what it held.

        Inputs were checked against config.pbtxt (names, types, shapes) by the caller.
        Raises RequestError, SessionError, CapacityError, DeadlineError or EngineDeadError."""
        ...


# Our error → (gRPC status code's name, Triton Python backend's TritonError code's name, HTTP status).
# Most specific first. Triton's codes have no RESOURCE_EXHAUSTED and no DEADLINE_EXCEEDED.
_STATUS: tuple[tuple[type[MillraceError], tuple[str, str, int]], ...] = (
    (DeadlineError, ("DEADLINE_EXCEEDED", "CANCELLED", 504)),
    (CapacityError, ("RESOURCE_EXHAUSTED", "UNAVAILABLE", 429)),
    (EngineDeadError, ("UNAVAILABLE", "UNAVAILABLE", 503)),
    (SessionError, ("INVALID_ARGUMENT", "INVALID_ARG", 400)),
    (RequestError, ("INVALID_ARGUMENT", "INVALID_ARG", 400)),
    (TemplateError, ("INVALID_ARGUMENT", "INVALID_ARG", 400)),
)


def status_of(error: MillraceError) -> tuple[str, str, int]:
    """(gRPC status name, TritonError code name, HTTP status) of an error; INTERNAL for what is no caller's fault."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return ("INTERNAL", "INTERNAL", 500)
