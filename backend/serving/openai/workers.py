"""Workers: OpenAI's API served by several processes on one port, each with its own connection to the engine.

For load that one Python process cannot stream. Whoever accepts a connection first has it. Stored responses are in a
file that all share, whose name is gone once they have it open. Used by backend/serve.py."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import tempfile
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from backend.engine.engine_client import EngineClient
from backend.errors import ConfigError, EngineDeadError, MillraceError
from backend.model_source import ModelSource
from backend.processes import start_process
from backend.serving.event_loop import use_uvloop
from backend.serving.openai.listener import LoadingServer
from backend.serving.openai.response_store import ResponseStore
from backend.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from backend.serving.operations import Operations

STOP_TIMEOUT_S = 5.0  # beyond the grace
MEMORY_FOLDER = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker's process is given. chat_template: as the option has it."""

    source: ModelSource
    chat_template: str | None
    model_names: tuple[str, ...]
    engine_address: str
    options: ServerOptions


class OpenAiWorkers:
    """A Server (service.py) of options.http_workers processes.

    operations  of this process, whose watchdog alone can ask the engine for its stacks
    loading     what holds the port until they start"""

    def __init__(self, setup: WorkerSetup, operations: Operations, loading: LoadingServer) -> None:
        self._setup = setup
        self._operations = operations
        self._loading = loading
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    async def start(self) -> None:
        """Returns once all of them answer. Raises ConfigError for one that does not come so far."""
        self._operations.start()
        with (contextlib.closing(await self._loading.hand_over()) as listener,
              tempfile.TemporaryDirectory(prefix="millrace-responses-", dir=_memory_folder()) as folder):
            responses_file = f"{folder}/responses"
            ResponseStore(responses_file).close()  # its table is there before they all want to make it
            for number in range(self._setup.options.http_workers):
                ours, theirs = Pipe()
                self._pipes.append(ours)
                self._processes.append(start_process(
                    _run_worker, (self._setup, responses_file, listener, theirs), f"http-worker-{number}"))
                theirs.close()  # so that either side's death closes the pipe
            for process, pipe in zip(self._processes, self._pipes, strict=True):
                await _readable(pipe)
                try:
                    pipe.recv()
                except EOFError:
                    raise ConfigError(f"{process.name} ended before it served; its log says why") from None

    async def ended(self) -> MillraceError:
        waiting = [asyncio.create_task(_readable(pipe)) for pipe in self._pipes]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return EngineDeadError("a process of the HTTP server ended; its log says why")

    async def stop(self, grace_s: float) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(grace_s)
        for process in self._processes:
            await asyncio.to_thread(process.join, grace_s + STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                await asyncio.to_thread(process.join)
        for pipe in self._pipes:
            pipe.close()
        await self._operations.stop()


def share_metrics() -> None:
    """Before prometheus_client is imported, by the process that starts the workers: /metrics of each tells of all."""
    folder = tempfile.TemporaryDirectory(prefix="millrace-metrics-")
    atexit.register(folder.cleanup)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder.name


def _memory_folder() -> Path | None:
    """Where files take memory, not a disk, on Linux; None: wherever temporary files are."""
    return MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None


def _run_worker(setup: WorkerSetup, responses_file: str, listener: socket.socket, pipe: Connection) -> None:
    """The process's body. It stops when its parent says so, or is gone: signals are the parent's matter."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    use_uvloop()
    asyncio.run(_work(setup, responses_file, listener, pipe))


async def _work(setup: WorkerSetup, responses_file: str, listener: socket.socket, pipe: Connection) -> None:
    from backend.serving.openai.context import ApiContext
    from backend.serving.openai.server import OpenAiServer
    from backend.serving.operations import Operations
    from backend.text.chat_template_option import read_chat_template
    from backend.text.front_end import TextFrontEnd

    source = setup.source
    front_end = TextFrontEnd(source, read_chat_template(setup.chat_template, source.tokenizer_dir))
    async with EngineClient(setup.engine_address) as engine:
        context = ApiContext(front_end, engine, setup.model_names, responses=ResponseStore(responses_file))
        server = OpenAiServer(context, Operations(setup.options, engine))
        await server.start_on(listener)
        pipe.send("ready")
        await _readable(pipe)
        try:
            grace_s = pipe.recv()
        except EOFError:
            grace_s = 0.0
        await server.stop(grace_s)


async def _readable(pipe: Connection) -> None:
    """Until there is a message, or the other side is gone."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(pipe.fileno())
