"""Sessions: what a second turn saves. Time to the first token of a cold prompt of 2,048 tokens, and of the next turn of
the same session, through the service on gRPC, in one run.

    python -m benchmarks.sessions

Works on the demo model, which knows 2,048 positions: its workspace is made with dynamic rope scaling for longer
sessions. Nothing is shared between rounds: the prefix cache is off."""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, run
from backend.text.tokenizer import Tokenizer
from backend.workspace import CONFIG, Workspace
from benchmarks.record import RESULTS, save
from client import ChatClient
from converter.convert import convert_checkpoint

PROMPT_TOKENS = 2048


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.sessions --rounds 5")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), default=RESULTS / "sessions.json", show_default=True)
def main(rounds: int, file: Path) -> None:
    """Time to first token, cold and in the second turn of a session."""
    cold_s, warm_s, cached = [], [], []
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (client, tokenizer):
        for number in range(rounds + 1):  # the first is the warm-up
            session = client.session()
            first_s, _ = time_to_first_token(session, prompt(tokenizer, number))
            second_s, num_cached = time_to_first_token(session, "What is seven plus twelve?")
            session.end()
            if number:
                cold_s.append(first_s)
                warm_s.append(second_s)
                cached.append(num_cached)
    cold_ms, warm_ms = statistics.median(cold_s) * 1000, statistics.median(warm_s) * 1000
    click.echo(f"first token of a cold prompt of {PROMPT_TOKENS} tokens: {cold_ms:.0f} ms; of the session's second "
               f"turn: {warm_ms:.0f} ms ({min(cached)} tokens cached): {cold_ms / warm_ms:.1f} times faster")
    save(file, {"prompt_tokens": PROMPT_TOKENS, "rounds": rounds, "cold_ms": round(cold_ms, 1),
                "second_turn_ms": round(warm_ms, 1), "cached_tokens": min(cached),
                "times_faster": round(cold_ms / warm_ms, 1)})


@contextmanager
def served(folder: Path) -> Iterator[tuple[ChatClient, Tokenizer]]:
    """The demo model behind backend.serve, with room for a prompt of PROMPT_TOKENS and more."""
    workspace = folder / "workspace"
    convert_checkpoint("internlm2", Path("demo/checkpoint"), dst_path=workspace)
    config = workspace / CONFIG
    text = re.sub(r"(?m)^rope_scaling_type = .*$", 'rope_scaling_type = "dynamic"', config.read_text())
    config.write_text(re.sub(r"(?m)^session_len = \d+", f"session_len = {2 * PROMPT_TOKENS}", text)
                      .replace("enable_prefix_caching = 1", "enable_prefix_caching = 0"))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(listener.getsockname()[1]) for listener in (one, other)]
    command = [sys.executable, "-m", "backend.serve", str(workspace), "--host", "127.0.0.1", "--port", ports[0],
               "--http_port", ports[1], "--max_batch_size", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert "serving" in server.stdout.readline()
            yield ChatClient(f"127.0.0.1:{ports[0]}"), Tokenizer(Workspace(workspace).tokenizer_dir)
        finally:
            server.terminate()


def prompt(tokenizer: Tokenizer, number: int) -> str:
    """About PROMPT_TOKENS tokens with their template, different for each number."""
    text = f"Conversation {number}. "
    while len(tokenizer.encode(text)) < PROMPT_TOKENS - 10:
        text += "The fox and the rabbit went on and on. "
    return tokenizer.decode(tokenizer.encode(text)[:PROMPT_TOKENS - 9])


def time_to_first_token(session: object, text: str) -> tuple[float, int]:
    """Seconds until the first text of an answer of at most eight tokens, and how many prompt tokens were cached."""
    begin = time.perf_counter()
    first_s, num_cached = 0.0, 0
    for part in session.stream(text, temperature=0, max_new_tokens=8, ignore_eos=True):
        if not first_s and part.num_completion_tokens:
            first_s, num_cached = time.perf_counter() - begin, part.num_cached_tokens
    return first_s, num_cached


if __name__ == "__main__":
    run(main)
