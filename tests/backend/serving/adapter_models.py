"""Served models that show what backend/serving/tritonserver.py hands over: used by test_tritonserver.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from backend import errors
from backend.serving.served_model import InferContext, ServedModel, Tensors

CONFIGS = {
    "mirror": """
name: "mirror" backend: "python" max_batch_size: 1
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "IDS" data_type: TYPE_UINT32 dims: [ -1 ] optional: true },
  { name: "SEED" data_type: TYPE_UINT64 dims: [ 1 ] reshape: { shape: [ ] } optional: true },
  { name: "IS_SET" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "PAUSE_S" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "IDS" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "SEED" data_type: TYPE_UINT64 dims: [ 1 ] },
  { name: "IS_SET" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "TIMEOUT_S" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "ID" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
    "counter": """
name: "counter" backend: "python" max_batch_size: 1
model_transaction_policy { decoupled: true }
input [
  { name: "COUNT" data_type: TYPE_UINT32 dims: [ 1 ] },
  # Class name of the error that comes after the last number.
  { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "PAUSE_S" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [
  { name: "INDEX" data_type: TYPE_UINT32 dims: [ 1 ] },
  # How many requests were given up before their end, since the server started.
  { name: "CLOSED" data_type: TYPE_UINT32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
}


class Mirror:
    """Gives back what it got, and what its context says."""

    name = "mirror"

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        if "PAUSE_S" in inputs:
            await asyncio.sleep(inputs["PAUSE_S"].item())
        outputs = {name: value for name, value in inputs.items() if name != "PAUSE_S"}
        if "SEED" in inputs:
            assert inputs["SEED"].shape == (1,)
            outputs["SEED"] = inputs["SEED"].reshape(1, 1)
        timeout_s = -1.0 if context.timeout_s is None else context.timeout_s
        yield outputs | {"TIMEOUT_S": np.array([[timeout_s]], np.float32),
                         "ID": np.array([[context.request_id.encode()]], object)}


class Counter:
    """Counts, and may fail at the end."""

    name = "counter"

    def __init__(self) -> None:
        self._num_closed = 0

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        is_complete = False
        try:
            for index in range(inputs["COUNT"].item()):
                yield {"INDEX": np.array([[index]], np.uint32), "CLOSED": np.array([[self._num_closed]], np.uint32)}
                await asyncio.sleep(inputs["PAUSE_S"].item() if "PAUSE_S" in inputs else 0)
            is_complete = True
        finally:
            self._num_closed += not is_complete
        if "ERROR" in inputs:
            name = inputs["ERROR"].item().decode()
            raise getattr(errors, name, ValueError)(f"a {name} on purpose")


def models() -> dict[str, ServedModel]:
    return {model.name: model for model in (Mirror(), Counter())}
