"""First conversation: what `make demo` shows. Starts the service for a workspace, talks to it through the client, and
stops it. `python -m demo.first_conversation ./workspace`.

Three turns of one session, streamed: a story, a fact to remember, the fact recalled."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from client import ChatClient
from protocol.ports import GRPC_PORT, HTTP_PORT, OPENAI_PORT

SCRIPT = Path(__file__).resolve().parent.parent / "service_docker_up.sh"
QUESTIONS = ("Tell me a story about a fox and a rabbit.", "My name is Ada.", "What is my name?")
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


def main(workspace: str) -> None:
    port = _free_port(GRPC_PORT)
    with _service(workspace, port), ChatClient(f"127.0.0.1:{port}") as client:
        session = client.session()
        for question in QUESTIONS:
            print(f"\n> {question}")
            for part in session.stream(question, temperature=0):
                print(part.text, end="", flush=True)
            print(f"\n  ({part.num_completion_tokens} tokens; of the {part.num_prompt_tokens} before them the session "
                  f"still held {part.num_cached_tokens})")
        session.end()
        print(flush=True)


@contextmanager
def _service(workspace: str, port: int) -> Iterator[None]:
    """Serves while the body runs; what the service prints is printed here, in between."""
    service = subprocess.Popen(["bash", SCRIPT, workspace, "--runtime", "embedded", "--port", str(port),
                                "--http-port", str(_free_port(HTTP_PORT)),
                                "--server-port", str(_free_port(OPENAI_PORT))], start_new_session=True,
                               stdout=subprocess.PIPE, text=True)
    serves = threading.Event()
    threading.Thread(target=_show, args=(service.stdout, serves), daemon=True).start()
    try:
        _wait_until(serves, service)
        yield
    finally:
        service.send_signal(signal.SIGTERM)
        try:
            service.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            service.kill()
    if service.returncode:
        sys.exit(f"error: the service ended with code {service.returncode}; what it printed above says why")


def _show(lines: TextIO, serves: threading.Event) -> None:
    """Prints them; the one that says where the service is reached is the sign that it is."""
    for line in lines:
        print(line, end="", flush=True)
        if line.startswith("serving "):
            serves.set()


def _wait_until(serves: threading.Event, service: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not serves.wait(0.1):
        if service.poll() is not None:
            sys.exit("error: the service did not start; what it printed above says why")
        if time.monotonic() > deadline:
            sys.exit(f"error: the service was not ready after {START_TIMEOUT_S:g} s")


def _free_port(wanted: int) -> int:
    """The port that everybody knows, or another one where something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", wanted))
            return wanted
        except OSError:
            probe.bind(("0.0.0.0", 0))
            port = probe.getsockname()[1]
    print(f"port {wanted} is in use by another program, so this demo takes {port}", file=sys.stderr)
    return port


if __name__ == "__main__":
    main(*sys.argv[1:])
