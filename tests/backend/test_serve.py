"""The service as it is started and stopped: `python -m backend.serve`, with the demo model and real clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from backend.errors import CheckpointError, ConfigError
from backend.serve import main
from backend.serving.address import Address
from client import ChatClient, ChatError
from converter.convert import convert_checkpoint
from tests.backend.serving import triton_harness

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"
TIMEOUT_S = 120


class Service:
    """A service in a process of its own."""

    def __init__(self, model: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.port, self.http_port, self.server_port = free_port(), free_port(), free_port()
        command = [sys.executable, "-m", "backend.serve", str(model), "--host", "127.0.0.1", "--port", str(self.port),
                   "--http_port", str(self.http_port), "--server-port", str(self.server_port),
                   "--cache_max_entry_count", "64", *options]
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env={**os.environ, **(environment or {})})
        self.lines: list[str] = []

    def read_until(self, beginning: str) -> str:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(beginning):
                return self.lines[-1]
        raise AssertionError("\n".join(self.lines))

    def end(self, signal_number: int | None = None) -> int:
        """Waits for the end, after a signal if one is given, and returns the exit code."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        self.lines += self.process.communicate(timeout=TIMEOUT_S)[0].splitlines()
        return self.process.returncode

    def engine(self) -> psutil.Process:
        """The engine's process: the child that computes, unlike multiprocessing's tracker."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "spawn_main" in str(child.cmdline()))


@contextlib.contextmanager
def serving(model: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Service]:
    service = Service(model, *options, environment=environment)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait()
        service.process.stdout.close()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "work space"
    return convert_checkpoint("internlm2", CHECKPOINT, dst_path=folder).workspace


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def add_tritonserver(folder: Path) -> Path:
    """The tests' tritonserver as a program of that name, which brings the environment that its models need."""
    base, environment = triton_harness._base_directory(), triton_harness._environment()
    exports = "\n".join(f"export {name}={shlex.quote(environment[name])}" for name in ("PATH", "LD_LIBRARY_PATH"))
    program = folder / "tritonserver"
    program.write_text(f'#!/bin/sh\n{exports}\nexec {base}/bin/tritonserver --backend-directory={base}/backends "$@"\n')
    program.chmod(0o755)
    return program


def run_documented_example(port: int) -> str:
    """What the Python block of docs/serving.md prints, at this port."""
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return subprocess.run([sys.executable, "-c", code.replace(":33337", f":{port}")], check=True, text=True,
                          capture_output=True, timeout=TIMEOUT_S).stdout


def ask(port: int, model: str, question: str) -> str:
    """The greedy answer of OpenAI's API at this port."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body.encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def answer_slowly(client: ChatClient, num_tokens: int) -> tuple[threading.Thread, list[str | ChatError]]:
    """Begins an answer of so many tokens in a thread; returns once its first token is there."""
    received: list[str | ChatError] = []
    has_begun = threading.Event()

    def read() -> None:
        try:
            for part in client.session().stream("Tell me a story.", max_new_tokens=num_tokens, ignore_eos=True):
                received.append(part.finish_reason or "")
                has_begun.set()
        except ChatError as error:
            received.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert has_begun.wait(TIMEOUT_S)
    return thread, received


def test_a_workspace_is_served_until_sigterm_and_what_runs_is_finished(workspace):
    with serving(workspace, "--grace", str(TIMEOUT_S)) as service:
        assert service.read_until("serving") == (
            f"serving internlm2 at http://127.0.0.1:{service.server_port}/v1, grpc://127.0.0.1:{service.port} and "
            f"http://127.0.0.1:{service.http_port}; stop with Ctrl-C")
        assert ask(service.server_port, "internlm2", "What is 12 plus 30?").startswith("12 plus 30 is 42")
        with urllib.request.urlopen(f"http://127.0.0.1:{service.http_port}/v2/health/ready", timeout=10) as ready:
            assert ready.status == 200
        with ChatClient(f"127.0.0.1:{service.port}") as client:
            assert client.server_info().model_name == "internlm2"
            assert "Ada" in client.session().infer("My name is Ada.", temperature=0).text
            assert "fox" in run_documented_example(service.port)
            reading, received = answer_slowly(client, 300)
            service.process.send_signal(signal.SIGTERM)
            service.read_until("INFO  stopping")
            with pytest.raises(ChatError):
                client.session().infer("Hello!")
            reading.join(TIMEOUT_S)
            assert received[-1] == "length"
        assert service.end() == 0


def test_a_hugging_face_folder_is_served_with_lmdeploy_s_flags_over_openai_s_api_alone():
    flags = ["--api", "openai", "--server-name", "127.0.0.1", "--tp", "1", "--session-len", "512",
             "--max-batch-size", "8", "--model-name", "mine", "--quant-policy", "8", "--model-format", "hf",
             "--cache-max-entry-count", "32", "--log-level", "ERROR", "--enable-prefix-caching",
             "--cache-block-seq-len", "32", "--chat-template", '{"model_name": "internlm2"}']
    with serving(CHECKPOINT, *flags) as service:
        assert service.read_until("serving") == (
            f"serving checkpoint at http://127.0.0.1:{service.server_port}/v1; stop with Ctrl-C")
        assert ask(service.server_port, "mine", "What is 12 plus 30?").startswith("12 plus 30 is 42")
        for port in (service.port, service.http_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
        assert service.end(signal.SIGTERM) == 0
        assert len(service.lines) == 1


def test_an_answer_longer_than_the_grace_is_ended_and_the_exit_is_clean(workspace):
    with serving(workspace, "--grace", "0.1") as service, ChatClient(f"127.0.0.1:{service.port}") as client:
        service.read_until("serving")
        reading, received = answer_slowly(client, 2000)
        assert service.end(signal.SIGINT) == 0
        reading.join(TIMEOUT_S)
        assert isinstance(received[-1], ChatError)


def test_a_dead_engine_ends_the_service_with_one_line_and_nobody_hangs():
    with serving(CHECKPOINT, "internlm2") as service, ChatClient(f"127.0.0.1:{service.port}") as client:
        service.read_until("serving")
        reading, received = answer_slowly(client, 2000)
        service.engine().kill()
        reading.join(TIMEOUT_S)
        assert "the engine process was killed by signal 9" in str(received[-1])
        assert service.end() == 1
        assert service.lines[-1].startswith("error: the engine process was killed by signal 9")
        assert not any("Traceback" in line for line in service.lines)


def test_sigterm_while_the_model_loads_ends_it(workspace):
    with serving(workspace) as service:
        service.read_until("INFO")
        engine = service.engine()
        assert service.end(signal.SIGTERM) == 0
        assert not engine.is_running()


def test_a_port_in_use_is_one_line_before_anything_is_loaded(workspace):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(workspace, "--port", str(port)) as service:
            assert service.end() == 1
            assert service.lines == [f"error: port {port} is in use; stop what listens there, or choose another with "
                                     "--port"]


def serve_here(*arguments: object) -> None:
    main.main([*map(str, arguments), "--port", str(free_port()), "--http_port", str(free_port()), "--server_port",
               str(free_port())], standalone_mode=False)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither a workspace"):
        serve_here(tmp_path)


def test_a_folder_that_is_not_of_the_format_it_has_to_be_is_refused():
    with pytest.raises(CheckpointError, match="is no AWQ checkpoint, its weights are not quantised; use the format hf"):
        serve_here(CHECKPOINT, "--model-format", "awq")


def test_triton_is_refused_where_it_is_not(workspace, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no tritonserver is there"):
        serve_here(workspace, "--server", "triton")


def test_triton_is_refused_for_a_folder_that_is_no_workspace(tmp_path, monkeypatch):
    (tmp_path / "tritonserver").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="has no model_repository, which tritonserver needs"):
        serve_here(CHECKPOINT, "internlm2", "--server", "triton")


def test_two_equal_ports_are_refused():
    with pytest.raises(ConfigError, match="both 4000"):
        Address("127.0.0.1", 4000, 4000).check_is_free()
    with pytest.raises(ConfigError, match="--http_port and --server_port are both 4001"):
        Address("127.0.0.1", 4000, 4001, 4001).check_is_free()


def test_an_unknown_host_is_refused():
    with pytest.raises(ConfigError, match="the host 'no such host' is not known"):
        Address("no such host", 4000, 4001).check_is_free()


@pytest.mark.real_triton
def test_the_tritonserver_on_the_machine_serves_the_same_workspace(workspace, tmp_path):
    path = f"{add_tritonserver(tmp_path).parent}{os.pathsep}{os.environ['PATH']}"
    with serving(workspace, "--server", "triton", environment={"PATH": path}) as service:
        service.read_until("serving")
        with ChatClient(f"127.0.0.1:{service.port}") as client:
            assert client.server_info().model_name == "internlm2"
            session = client.session()
            assert "Ada" in session.infer("My name is Ada.", temperature=0).text
            assert "Ada" in session.infer("What is my name?", temperature=0).text
            # OpenAI's port is ours, on the same engine.
            answer = httpx.post(f"http://127.0.0.1:{service.server_port}/v1/chat/completions", timeout=TIMEOUT_S, json={
                "model": "internlm2", "messages": [{"role": "user", "content": "My name is Ada."}], "temperature": 0})
            assert "Ada" in answer.json()["choices"][0]["message"]["content"]
            tritonserver = next(child for child in psutil.Process(service.process.pid).children()
                                if "tritonserver" in child.name())
            assert service.end(signal.SIGTERM) == 0
        assert not tritonserver.is_running()


@pytest.mark.real_triton
def test_a_tritonserver_does_not_outlive_a_service_that_is_killed(workspace, tmp_path):
    path = f"{add_tritonserver(tmp_path).parent}{os.pathsep}{os.environ['PATH']}"
    with serving(workspace, "--server", "triton", environment={"PATH": path}) as service:
        service.read_until("serving")
        left = psutil.Process(service.process.pid).children(recursive=True)
        assert any("tritonserver" in child.name() for child in left)
        service.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(left, timeout=60)
        assert not alive
