"""Serve: a model on ports 33337 (gRPC) and 33338 (HTTP), in the KServe v2 protocol: `python -m backend.serve PATH`.

Starts the engine in a process of its own and a server beside it: Millrace's own, or the tritonserver of this machine.
service_docker_up.sh and the container of docker/Dockerfile come down to this command."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from backend.command_line import (
    CONTEXT_SETTINGS,
    engine_options,
    engine_overrides,
    log_option,
    model_format_option,
    run,
)
from backend.config import EngineConfig
from backend.model_source import ModelSource, open_model
from backend.serving.address import Address
from protocol.ports import GRPC_PORT, HTTP_PORT

if TYPE_CHECKING:
    from backend.engine.async_engine import AsyncEngine
    from backend.serving.service import Server

EPILOG = """\b
Examples:
  python -m backend.serve ./workspace
  python -m backend.serve ./workspace --port 40000 --http_port 40001 --host 127.0.0.1
  python -m backend.serve /path/to/internlm2-chat-7b internlm2 --session_len 8192
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("model_path")
@click.argument("model_name", required=False)
@click.option("--server", type=click.Choice(["embedded", "triton"]), default="embedded", show_default=True,
              help="embedded: Millrace's own; triton: the tritonserver on this machine, which needs a workspace.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Interface; 127.0.0.1 is this machine alone.")
@click.option("--port", type=click.IntRange(1, 65535), default=GRPC_PORT, show_default=True, help="gRPC port.")
@click.option("--http_port", type=click.IntRange(1, 65535), default=HTTP_PORT, show_default=True, help="HTTP port.")
@click.option("--grace", type=click.FloatRange(min=0), default=10.0, show_default=True,
              help="Seconds that running requests get once the service is told to stop.")
@model_format_option
@engine_options
@log_option
def main(model_path: str, model_name: str | None, server: str, host: str, port: int, http_port: int, grace: float,
         model_format: str | None, **options: Any) -> None:
    """Serve the model in MODEL_PATH, a workspace or a Hugging Face folder, until Ctrl-C or SIGTERM.

    MODEL_NAME chooses the built-in chat template where the model brings none."""
    address = Address(host, port, http_port)
    address.check_is_free()
    source = open_model(model_path, model_name, model_format)
    config = source.engine.with_options(engine_overrides(options))
    open_server = _opener(server, source, config, address)
    from backend.serving.service import run_service  # takes seconds, and what can be refused was refused above

    _use_uvloop()
    asyncio.run(run_service(
        source, config, open_server, grace,
        on_ready=lambda: click.echo(f"serving {source.model.model_name} at {address}; stop with Ctrl-C")))


def _opener(server: str, source: ModelSource, config: EngineConfig,
            address: Address) -> Callable[[AsyncEngine], Server]:
    """Builds the server once the engine runs; what it needs of the machine is looked for at once."""
    if server == "embedded":
        from backend.serving.embedded_server import EmbeddedServer

        return lambda engine: EmbeddedServer(source, config, engine, address)
    from backend.serving.tritonserver_process import TritonserverProcess, find_repository, find_tritonserver

    program, repository = find_tritonserver(), find_repository(source.path)
    return lambda engine: TritonserverProcess(program, repository, engine.address, address)


def _use_uvloop() -> None:
    """A fifth less server time per token with many streams, where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):  # until the service looks after them itself
        signal.signal(number, lambda *_: sys.exit(0))
    run(main)
