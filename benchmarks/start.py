"""Start: from starting a process to the first token of a short prompt, its weights in the page cache.

    python -m benchmarks.start --shape m7

Makes a checkpoint of that shape with random weights if the folder holds none, reads it once, and then starts
first_token.py, whose interpreter, imports and all count: first with an empty cache of compiled kernels, then, the
median of several, with the cache that the first left. Imports are warm in all of them: this process has made them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from backend.command_line import CONTEXT_SETTINGS, run
from benchmarks.checkpoint import ensure_checkpoint
from benchmarks.device_limits import need_gpu
from benchmarks.first_token import ENGINES
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, weights_option, with_weights
from converter.convert import convert_checkpoint

READ_BYTES = 16 << 20


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.start --engines millrace")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@weights_option
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Separated by commas.")
@click.option("--dir", "parent", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()),
              show_default=True, help="Where checkpoints are kept; twice their size is needed with --workspace.")
@click.option("--workspace", is_flag=True, help="Convert, and start from the workspace too.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True,
              help="Warm starts; their median counts.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, weights: str, engines: str, parent: Path, workspace: bool, rounds: int, file: Path | None) -> None:
    """Seconds from the start of a process to its first token."""
    names = engines.split(",")
    if unknown := [name for name in names if name not in ENGINES]:
        raise click.ClickException(f"--engines {','.join(unknown)} is not known; use some of {','.join(ENGINES)}")
    need_gpu()
    model = with_weights(SHAPES[shape], weights)
    shape = model.model_name
    folder = parent / f"millrace-{shape}"
    ensure_checkpoint(model, folder)
    starts = [(engine, folder) for engine in names]
    if workspace:
        converted = parent / f"millrace-{shape}-workspace"
        if not converted.is_dir():
            convert_checkpoint("base", folder, dst_path=converted)
        starts.append(("millrace", converted))
    subprocess.run([sys.executable, "-c", "import torch, triton, transformers"], check=True)
    figures = {}
    for engine, source in starts:
        read_once(source)
        with tempfile.TemporaryDirectory() as cache:
            cold = start(engine, source, cache)
            warm = [start(engine, source, cache) for _ in range(rounds)]
        typical = sorted(warm, key=lambda found: found["first_token_at"])[rounds // 2]
        name = engine + " from a workspace" * (source != folder)
        figures[name] = {
            "warm_s": round(statistics.median(found["first_token_at"] for found in warm), 2),
            "warm_all_s": [round(found["first_token_at"], 2) for found in warm],
            "cold_s": round(cold["first_token_at"], 2), "next_prompt_s": round(typical["next_prompt"], 3),
            "warm_phases_s": rounded(typical["phases"]), "cold_phases_s": rounded(cold["phases"])}
        click.echo(f"{shape}, {name}: first token after {figures[name]['warm_s']:.1f} s, "
                   f"{figures[name]['cold_s']:.1f} s with an empty kernel cache; "
                   + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in typical["phases"].items()))
    save(file or RESULTS / f"start_{shape}.json", {
        "shape": shape, "checkpoint_bytes": sum(part.stat().st_size for part in folder.glob("*.safetensors")),
        "rounds": rounds, "starts": figures})


def start(engine: str, source: Path, kernel_cache: str) -> dict[str, Any]:
    """What first_token.py found in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.first_token", engine, str(source), str(time.time())]
    caches = {"TRITON_CACHE_DIR": f"{kernel_cache}/triton", "XDG_CACHE_HOME": kernel_cache}  # Triton's; CUDA C++'s
    process = subprocess.run(command, env={**os.environ, **caches}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def read_once(folder: Path) -> None:
    """Brings the weights into the page cache."""
    for part in folder.rglob("*.safetensors"):
        with part.open("rb", buffering=0) as stream:
            while stream.read(READ_BYTES):
                pass


def rounded(phases: dict[str, float]) -> dict[str, float]:
    return {phase: round(seconds, 2) for phase, seconds in phases.items()}


if __name__ == "__main__":
    run(main)
