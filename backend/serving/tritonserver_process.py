"""Tritonserver process: NVIDIA's Triton Inference Server as the service's server.

Starts the `tritonserver` on this machine with a workspace's model repository, whose models reach the engine's process
by the address in their environment. Used by backend/serve.py and so by the container of docker/Dockerfile.
Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from backend.errors import ConfigError, MillraceError
from backend.serving.address import Address
from backend.serving.engine_address import ENGINE_ADDRESS

START_TIMEOUT_S = 120.0
POLL_S = 0.1
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STUB_TIME_S = 5.0  # beyond the grace: tritonserver looks once a second, then ends its models' processes


def find_tritonserver() -> str:
    """Path of the program. Raises ConfigError if there is none."""
    for name in ("tritonserver", "/opt/tritonserver/bin/tritonserver"):  # the second is where NVIDIA's images have it
        if path := shutil.which(name):
            return path
    raise ConfigError("no tritonserver is there (neither on PATH nor in /opt/tritonserver/bin); use --server embedded")


def find_repository(workspace: Path) -> Path:
    """A workspace's model repository. Raises ConfigError if it has none, as a Hugging Face folder."""
    repository = workspace / "model_repository"
    if not repository.is_dir():
        raise ConfigError(f"{workspace} has no model_repository, which tritonserver needs; convert the checkpoint, or "
                          "use --server embedded")
    return repository


def _end_with_parent() -> Callable[[], object]:
    """For a child before it becomes a program: it gets SIGTERM when this process is killed, as by SIGKILL."""
    prctl = ctypes.CDLL(None).prctl  # looked up now: a child of many threads may only do the call
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class TritonserverProcess:
    """A Server (service.py). The models' interpreter is the `python3` beside this one, which has Millrace installed."""

    def __init__(self, program: str, repository: Path, engine_address: str, address: Address) -> None:
        self._program, self._repository = program, repository
        self._engine_address, self._address = engine_address, address
        self._folder = tempfile.TemporaryDirectory(prefix="millrace-triton-")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # tritonserver starts its models through a shell and quotes nothing: a space in the path would end them.
        link = Path(self._folder.name) / "model_repository"
        link.symlink_to(self._repository.resolve())
        environment = {**os.environ, ENGINE_ADDRESS: self._engine_address, "PYTHONDONTWRITEBYTECODE": "1",
                       "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        # A session of its own: a Ctrl-C in the terminal is ours to pass on, once requests had their time.
        self._process = await asyncio.create_subprocess_exec(
            self._program, *self._arguments(link), env=environment, start_new_session=True,
            preexec_fn=_end_with_parent())
        ended = asyncio.create_task(self.ended())
        try:
            for _ in range(round(START_TIMEOUT_S / POLL_S)):
                if await asyncio.to_thread(self._is_ready):
                    return
                done, _ = await asyncio.wait({ended}, timeout=POLL_S)
                if done:
                    raise ended.result()
            raise MillraceError(f"tritonserver was not ready after {START_TIMEOUT_S:g} s; its log says why")
        finally:
            ended.cancel()

    async def ended(self) -> MillraceError:
        code = await self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return MillraceError(f"tritonserver {how}; its log says why")

    async def stop(self, grace_s: float) -> None:
        self._folder.cleanup()
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_s + _STUB_TIME_S)
        with contextlib.suppress(ProcessLookupError):  # also what a crashed server leaves of its models' processes
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def _arguments(self, repository: Path) -> list[str]:
        host = self._address.host
        return [f"--model-repository={repository}", "--disable-auto-complete-config",
                f"--grpc-address={host}", f"--grpc-port={self._address.port}",
                "--allow-http=1", f"--http-address={host}", f"--http-port={self._address.http_port}",
                "--allow-metrics=0",  # on a port of its own, where a second service would not start
                "--log-info=0",
                # Two servers on one machine must not share memory segments.
                f"--backend-config=python,shm-region-prefix-name=millrace-{os.getpid()}"]

    def _is_ready(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._address.host, self._address.host)
        url = f"http://{host}:{self._address.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False
