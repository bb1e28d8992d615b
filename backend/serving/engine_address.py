"""Engine address: how the models inside Triton Inference Server learn where the engine's process is.

Used by whoever starts tritonserver and by workspace_model.py. Imports no torch."""

from __future__ import annotations

import os

from backend.errors import ConfigError

ENGINE_ADDRESS = "MILLRACE_ENGINE_ADDRESS"  # environment variable


def engine_address() -> str:
    """The engine's ZeroMQ address. Raises ConfigError where the environment does not say it."""
    address = os.environ.get(ENGINE_ADDRESS)
    if not address:
        raise ConfigError(f"{ENGINE_ADDRESS} is not set; start an engine with `python -m backend.engine_service "
                          f"WORKSPACE --address ipc:///tmp/engine`, and tritonserver with {ENGINE_ADDRESS}="
                          "ipc:///tmp/engine; `python -m backend.serve WORKSPACE --server triton` does both")
    return address
