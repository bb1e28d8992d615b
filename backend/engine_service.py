"""Engine service: the engine alone, in the foreground, for a tritonserver that somebody else starts.

`python -m backend.engine_service WORKSPACE --address ipc:///tmp/engine`; tritonserver then gets the same address in
MILLRACE_ENGINE_ADDRESS. `backend.serve` needs none of this: it starts both."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing.connection
import signal
from collections.abc import Callable
from typing import Any

import click

from backend.command_line import CONTEXT_SETTINGS, engine_options, engine_overrides, run
from backend.config import EngineConfig
from backend.engine.async_engine import LAST_WORDS_S, AsyncEngine
from backend.errors import ConfigError
from backend.model_source import ModelSource, open_model

EPILOG = """\b
Example:
  python -m backend.engine_service ./workspace --address ipc:///tmp/engine
  MILLRACE_ENGINE_ADDRESS=ipc:///tmp/engine tritonserver --model-repository=./workspace/model_repository \\
      --disable-auto-complete-config
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("workspace")
@click.option("--address", required=True, help="ZeroMQ address, e.g. ipc:///tmp/engine or tcp://127.0.0.1:5555.")
@engine_options
def main(workspace: str, address: str, **options: Any) -> None:
    """Run the engine of WORKSPACE at a ZeroMQ address until Ctrl-C or SIGTERM; says "ready" once it answers there."""
    if not address.startswith(("ipc://", "tcp://")):
        raise ConfigError(f"--address {address} is no ZeroMQ address; use ipc:///path/to/a/file or tcp://HOST:PORT")
    source = open_model(workspace)
    asyncio.run(run_engine(source, source.engine.with_options(engine_overrides(options)), address,
                           on_ready=lambda: click.echo(f"ready: {source.model.model_name} at {address}")))


async def run_engine(source: ModelSource, config: EngineConfig, address: str, on_ready: Callable[[], object]) -> None:
    """Runs until SIGTERM or SIGINT. Raises what the engine could not start with, or why it ended."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with _EngineAt(address, source, config) as engine:
            on_ready()
            await asyncio.to_thread(multiprocessing.connection.wait, [engine.process.sentinel])
            await asyncio.sleep(2 * LAST_WORDS_S)
            await engine.end_session(0)  # an engine that has ended says why to whoever asks for anything


class _EngineAt(AsyncEngine):
    """An engine whose process listens at an address of the caller's choice."""

    def __init__(self, address: str, source: ModelSource, config: EngineConfig) -> None:
        super().__init__(source, config)
        self.address = self._address = address


if __name__ == "__main__":
    run(main)
