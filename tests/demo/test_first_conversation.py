"""What `make demo` shows, with another program already on the well-known port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

from converter.convert import convert_checkpoint
from protocol.ports import GRPC_PORT

ROOT = Path(__file__).parents[2]


def test_the_demo_tells_a_story_recalls_a_fact_and_leaves_nothing_running(tmp_path):
    convert_checkpoint("internlm2", ROOT / "demo" / "checkpoint", dst_path=tmp_path / "workspace")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else's service there does as well
            stack.enter_context(socket.create_server(("0.0.0.0", GRPC_PORT)))
        done = subprocess.run([sys.executable, "-m", "demo.first_conversation", str(tmp_path / "workspace")], cwd=ROOT,
                              capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    story, fact, recalled = done.stdout.split("\n> ")[1:]
    assert "fox" in story and "rabbit" in story and story.count(".") >= 5
    assert "Ada" in fact and "Your name is Ada." in recalled
    assert f"port {GRPC_PORT} is in use by another program" in done.stderr
    (serving,) = (line for line in done.stdout.splitlines() if line.startswith("serving"))
    port = int(serving.split("grpc://0.0.0.0:")[1].split()[0])
    with socket.create_server(("127.0.0.1", port)):
        pass  # free again
