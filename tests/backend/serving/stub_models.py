"""Stub models: ServedModels with nothing behind them, for tests and benchmarks of the servers.

Plain numpy, so that the embedded server and the real Triton Inference Server run the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from backend import errors
from backend.serving.served_model import InferContext, ServedModel, Tensors

CONFIGS = {
    "echo": """
name: "echo" backend: "python" max_batch_size: 0
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "N" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "TEMP" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "N" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "TEMP" data_type: TYPE_FP32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
    "batched": """
name: "batched" backend: "python" max_batch_size: 1
input [
  { name: "IDS" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "SEED" data_type: TYPE_UINT64 dims: [ 1 ] reshape: { shape: [ ] } optional: true },
  { name: "IS_SET" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "SMALL" data_type: TYPE_INT8 dims: [ 2, -1 ] optional: true },
  { name: "HALF" data_type: TYPE_FP16 dims: [ 1 ] optional: true }
]
output [
  { name: "IDS" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "SEED" data_type: TYPE_UINT64 dims: [ 1 ] },
  { name: "IS_SET" data_type: TYPE_BOOL dims: [ 1 ] },
  { name: "SMALL" data_type: TYPE_INT8 dims: [ 2, -1 ] },
  { name: "HALF" data_type: TYPE_FP16 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
    "decoupled": """
name: "decoupled" backend: "python" max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MAX_TOKENS" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "PAUSE_S" data_type: TYPE_FP32 dims: [ 1 ] optional: true },
  # Class name of the error that comes after the last token; "bug" is an exception that no model means to raise.
  { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [
  { name: "TOKEN" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "INDEX" data_type: TYPE_INT32 dims: [ 1 ] },
  # How many requests are with the model now.
  { name: "RUNNING" data_type: TYPE_INT32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
    "fail": """
name: "fail" backend: "python" max_batch_size: 0
input [ { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
    "slow": """
name: "slow" backend: "python" max_batch_size: 0
input [ { name: "PAUSE_S" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "PAUSE_S" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
""",
}


class Echo:
    """Gives back what it got."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        outputs = dict(inputs)
        if "SEED" in inputs:
            assert inputs["SEED"].shape == (1,)  # as `reshape` declares it, beside the batch axis
            outputs["SEED"] = inputs["SEED"].reshape(1, 1)
        yield outputs


class Decoupled:
    """Streams MAX_TOKENS tokens as fast as they are read, or with a pause before each, and may fail at the end."""

    name = "decoupled"

    def __init__(self) -> None:
        self.num_running = 0

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        pause_s = inputs["PAUSE_S"].item() if "PAUSE_S" in inputs else 0
        self.num_running += 1
        try:
            for index in range(inputs["MAX_TOKENS"].item() if "MAX_TOKENS" in inputs else 3):
                if pause_s:
                    await asyncio.sleep(pause_s)
                yield {"TOKEN": np.array([b"t%d" % index], object), "INDEX": np.array([index], np.int32),
                       "RUNNING": np.array([self.num_running], np.int32)}
            if "ERROR" in inputs:
                raise _error(inputs["ERROR"].item().decode())
        finally:
            self.num_running -= 1


class Fail:
    """Raises the error that it is asked for."""

    name = "fail"

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        raise _error(inputs["ERROR"].item().decode())
        yield {}


class Slow:
    """Answers after a while."""

    name = "slow"

    async def infer(self, inputs: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        await asyncio.sleep(inputs["PAUSE_S"].item())
        yield dict(inputs)


def models() -> dict[str, ServedModel]:
    return {model.name: model for model in (Echo("echo"), Echo("batched"), Decoupled(), Fail(), Slow())}


def _error(name: str) -> Exception:
    return getattr(errors, name, ZeroDivisionError)(f"a {name} on purpose")
