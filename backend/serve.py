"""Serve: a model over OpenAI's API on port 23333, and in the KServe v2 protocol on 33337 (gRPC) and 33338 (HTTP):
`python -m backend.serve PATH`.

Starts the engine in a process of its own and servers beside it: Millrace's own, or for KServe the tritonserver of this
machine. The options are LMDeploy's where it has them, in both spellings, with dashes and with underscores.
service_docker_up.sh and the container of docker/Dockerfile come down to this command."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
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
from backend.errors import ConfigError
from backend.model_source import ModelSource, open_model
from backend.serving.address import Address
from backend.serving.event_loop import use_uvloop
from backend.serving.server_flags import ServeCommand, read_server_flags, server_flags
from backend.serving.server_options import ServerOptions
from protocol.ports import GRPC_PORT, HTTP_PORT, OPENAI_PORT

if TYPE_CHECKING:
    from backend.engine.async_engine import AsyncEngine
    from backend.serving.operations import Operations
    from backend.serving.service import Server
    from backend.text.front_end import TextFrontEnd

    _Opener = Callable[[AsyncEngine, Operations], Server]

EPILOG = """\b
Examples:
  python -m backend.serve ./workspace
  python -m backend.serve /path/to/internlm2_5-7b-chat --server-port 8000 --tp 2 --session-len 8192
  python -m backend.serve ./workspace --api kserve --port 40000 --http_port 40001 --host 127.0.0.1
"""


@click.command(cls=ServeCommand, context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("model_path")
@click.argument("model_name", required=False)
@click.option("--api", type=click.Choice(["openai", "kserve", "both"]), default="both", show_default=True,
              help="Which protocols are spoken.")
@click.option("--server_name", "--host", "host", default="0.0.0.0", show_default=True,
              help="Interface; 127.0.0.1 is this machine alone.")
@click.option("--server_port", type=click.IntRange(1, 65535), default=OPENAI_PORT, show_default=True,
              help="Port of OpenAI's API.")
@click.option("--port", type=click.IntRange(1, 65535), default=GRPC_PORT, show_default=True,
              help="gRPC port of KServe v2.")
@click.option("--http_port", type=click.IntRange(1, 65535), default=HTTP_PORT, show_default=True,
              help="HTTP port of KServe v2.")
@click.option("--server", type=click.Choice(["embedded", "triton"]), default="embedded", show_default=True,
              help="For KServe v2. embedded: Millrace's own; triton: the tritonserver on this machine, which needs a "
                   "workspace.")
@click.option("--model_name", "served_names", multiple=True,
              help="What OpenAI's clients call the model; may be given several times, answers use the first.  "
                   "[default: the model's own name, and MODEL_PATH as it is given]")
@click.option("--chat_template",
              help="Instead of the model's own: a built-in one's name, a file of Jinja, or LMDeploy's JSON, as a file "
                   "or as text.  Millrace's own servers use it.")
@click.option("--grace", type=click.FloatRange(min=0), default=10.0, show_default=True,
              help="Seconds that running requests get once the service is told to stop.")
@model_format_option
@engine_options
@server_flags
@log_option
def main(model_path: str, model_name: str | None, api: str, host: str, server_port: int, port: int, http_port: int,
         server: str, served_names: tuple[str, ...], chat_template: str | None, grace: float, model_format: str | None,
         **options: Any) -> None:
    """Serve the model in MODEL_PATH, a workspace or a Hugging Face folder, until Ctrl-C or SIGTERM.

    MODEL_NAME chooses the built-in chat template where the model brings none."""
    server_options = read_server_flags(options)
    if server == "triton" and api != "openai" and (server_options.api_keys or server_options.tls_key):
        raise ConfigError("tritonserver takes neither API keys nor TLS files from us; use --server embedded, or "
                          "--api openai")
    address = Address(host, *((port, http_port) if api != "openai" else (None, None)),
                      server_port if api != "kserve" else None, has_tls=server_options.tls_key is not None)
    address.check_is_free()
    if server_options.http_workers > 1:
        from backend.serving.openai.workers import share_metrics

        share_metrics()
    source = open_model(model_path, model_name, model_format)
    config = source.engine.with_options(engine_overrides(options))
    from backend.text.chat_template_option import read_chat_template
    from backend.text.front_end import TextFrontEnd

    front_end = TextFrontEnd(source, read_chat_template(chat_template, source.tokenizer_dir))
    kserve = None if api == "openai" else _kserve_opener(server, source, config, front_end, address)
    names = served_names or tuple(dict.fromkeys((source.model.model_name, model_path)))
    use_uvloop()
    asyncio.run(_serve(
        source, config, kserve,
        None if api == "kserve" else _OpenAiOpener(source, front_end, chat_template, names, address, server_options),
        server_options, grace,
        on_ready=lambda: click.echo(f"serving {source.model.model_name} at {address}; stop with Ctrl-C")))


async def _serve(source: ModelSource, config: EngineConfig, kserve: _Opener | None, openai: _OpenAiOpener | None,
                 options: ServerOptions, grace_s: float, on_ready: Callable[[], object]) -> None:
    """Both servers, or one, on one engine, until a signal."""
    from backend.serving.operations import Operations
    from backend.serving.servers import Servers
    from backend.serving.service import run_service  # takes seconds, and what can be refused was refused above

    def open_servers(engine: AsyncEngine) -> Server:
        operations = Operations(options, engine, engine.process.pid)
        return Servers([opener(engine, operations) for opener in (kserve, openai) if opener is not None])

    if openai is None:
        await run_service(source, config, open_servers, grace_s, on_ready)
        return
    async with openai.loading():
        await run_service(source, config, open_servers, grace_s, on_ready)


class _OpenAiOpener:
    """Holds the port while the model loads, and builds the server once the engine runs."""

    def __init__(self, source: ModelSource, front_end: TextFrontEnd, chat_template: str | None,
                 model_names: tuple[str, ...], address: Address, options: ServerOptions) -> None:
        self._source, self._front_end, self._chat_template = source, front_end, chat_template
        self._model_names, self._address, self._options = model_names, address, options

    @contextlib.asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Says that the model loads until `__call__`'s server takes over."""
        from backend.serving.openai.listener import LoadingServer

        self._loading = LoadingServer(self._address.host, self._address.server_port, self._options)
        await self._loading.start()
        try:
            yield
        finally:
            await self._loading.stop()

    def __call__(self, engine: AsyncEngine, operations: Operations) -> Server:
        from backend.serving.openai.context import ApiContext
        from backend.serving.openai.embedded import EmbeddedOpenAi

        if self._options.http_workers > 1:
            from backend.serving.openai.workers import OpenAiWorkers, WorkerSetup

            setup = WorkerSetup(self._source, self._chat_template, self._model_names, engine.address, self._options)
            return OpenAiWorkers(setup, operations, self._loading)
        return EmbeddedOpenAi(ApiContext(self._front_end, engine, self._model_names), operations, self._loading)


def _kserve_opener(server: str, source: ModelSource, config: EngineConfig, front_end: TextFrontEnd,
                   address: Address) -> _Opener:
    """Builds the server once the engine runs; what it needs of the machine is looked for at once."""
    if server == "embedded":
        from backend.serving.embedded_server import EmbeddedServer

        return lambda engine, operations: EmbeddedServer(source, config, front_end, engine, address, operations)
    from backend.serving.tritonserver_process import TritonserverProcess, find_repository, find_tritonserver

    program, repository = find_tritonserver(), find_repository(source.path)
    return lambda engine, _: TritonserverProcess(program, repository, engine.address, address)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):  # until the service looks after them itself
        signal.signal(number, lambda *_: sys.exit(0))
    run(main)
