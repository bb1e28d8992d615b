"""The real Triton Inference Server for tests: a model repository in, a running server out.

Needs the environment that `make test` puts into .venv-triton (the server's binary is in the wheel of nvidia-pytriton);
without it the tests that start a server are skipped. Owns the server's process group and its shared memory."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
VENV = ROOT / ".venv-triton"
START_TIMEOUT_S = 120.0
# How it ends where a process of a model holds the shared memory for 10 s, as it may while it starts on a busy machine.
LOCK_FAULT = "boost::interprocess::lock_exception"
STOP_TIMEOUT_S = 20.0

# 1/model.py of a model that is served from a class of the tests.
_MODEL_FILE = '''\
import sys
from contextlib import nullcontext

sys.path.insert(0, {root!r})
from backend.serving.tritonserver import TritonModel
from {module} import {factory}


class TritonPythonModel(TritonModel):
    def open_model(self, args):
        return nullcontext({factory}()[args["model_name"]])
'''


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A server that is ready. `process` is its own; the models' processes are in the same process group."""

    grpc_port: int
    http_port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.http_port}"


def write_repository(folder: Path, configs: Mapping[str, str], module: str, factory: str) -> Path:
    """A model repository of ServedModels: name → text of config.pbtxt; module.factory() gives name → ServedModel."""
    for name, config in configs.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        (folder / name / "1" / "model.py").write_text(
            _MODEL_FILE.format(root=str(ROOT), module=module, factory=factory))
    return folder


@contextlib.contextmanager
def start_triton(repository: Path, environment: Mapping[str, str] | None = None) -> Iterator[TritonServer]:
    """Skips the test where there is no server; raises RuntimeError with the log's end where it does not get ready."""
    with contextlib.ExitStack() as processes:
        for may_try_again in (True, True, False):
            server = processes.enter_context(_process(repository, environment or {}))
            try:
                _wait_until_ready(server)
                break
            except RuntimeError as error:
                if not (may_try_again and LOCK_FAULT in str(error)):
                    raise
        yield server


@contextlib.contextmanager
def _process(repository: Path, environment: Mapping[str, str]) -> Iterator[TritonServer]:
    base = _base_directory()
    prefix = f"millrace-test-{uuid.uuid4().hex[:8]}"
    grpc_port, http_port = _free_ports(2)
    command = [
        base / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={base / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}", "--disable-auto-complete-config",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}", "--http-address=127.0.0.1", f"--http-port={http_port}",
        "--allow-metrics=false", "--exit-timeout-secs=10",
    ]
    with tempfile.TemporaryDirectory(prefix="millrace-triton-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=_environment() | dict(environment), stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield TritonServer(grpc_port, http_port, log, process)
        finally:
            _stop(process)
            for leftover in Path("/dev/shm").glob(f"{prefix}*"):
                leftover.unlink(missing_ok=True)


def _base_directory() -> Path:
    if not (VENV / ".installed").is_file():
        pytest.skip("no Triton Inference Server here; `make test` sets it up where its wheel can be installed")
    return next(VENV.glob("lib/python3.*/site-packages/pytriton/tritonserver"))


@functools.cache
def _environment() -> dict[str, str]:
    """The models' Python is the first on PATH, and finds its own libpython; all other ways are ignored."""
    question = "import sysconfig, numpy; print(sysconfig.get_config_var('LIBDIR'), numpy.__version__)"
    library_dir, numpy_version = subprocess.run([VENV / "bin/python", "-c", question], check=True, text=True,
                                                capture_output=True).stdout.split()
    assert numpy_version.startswith("1."), f"numpy {numpy_version} in {VENV}: tensors would arrive wrong; make clean"
    return {"PATH": f"{VENV / 'bin'}:{os.environ['PATH']}", "LD_LIBRARY_PATH": library_dir,
            "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}


def _wait_until_ready(server: TritonServer) -> None:
    """The ports open once all models are loaded."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not all(_is_open(port) for port in (server.grpc_port, server.http_port)):
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"tritonserver did not get ready:\n{server.log.read_text(errors='replace')[-20000:]}")
        time.sleep(0.02)


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks first; the models' processes outlive a server that crashed, so the group is killed in any case."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
