"""Conversion against a plain copy of the same files, and its peak memory: `python -m benchmarks.convert`.

Copy and conversion take turns in one go, so that both find the same free memory, into the same file system, neither
flushed to disk; the checkpoint is random bf16 weights in the page cache. A first, unrecorded round warms both."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from backend.command_line import CONTEXT_SETTINGS, run
from benchmarks.record import RESULTS, save
from converter.convert import convert_checkpoint


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.convert --layers 8 --rounds 5")
@click.option("--layers", default=8, show_default=True, help="Decoder layers of the 7B InternLM2 shape, 416 MiB each.")
@click.option("--rounds", default=5, show_default=True, help="Median of so many.")
@click.option("--dir", "parent", type=click.Path(path_type=Path), help="Folder to work in.  [default: the system's]")
@click.option("--json", "file", type=click.Path(path_type=Path), default=RESULTS / "convert.json", show_default=True)
def main(layers: int, rounds: int, parent: Path | None, file: Path) -> None:
    """Seconds of `cp` and of the conversion, their ratio, and the memory that the conversion adds."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        checkpoint, target = Path(folder, "checkpoint"), Path(folder, "target")
        layer_bytes, num_bytes = write_checkpoint(checkpoint, layers)
        seconds: dict[str, list[float]] = {"cp": [], "convert": []}
        resident_bytes = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was the writing of the checkpoint
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            subprocess.run(["cp", "-r", checkpoint, target], check=True)
            seconds["cp"].append(time.perf_counter() - begin)
            shutil.rmtree(target)
            seconds["convert"].append(convert_checkpoint("base", checkpoint, dst_path=target).duration_s)
            shutil.rmtree(target)
        peak_bytes = _memory("VmHWM") - resident_bytes
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ratio = median["convert"] / median["cp"]
    click.echo(f"{num_bytes / 2**30:.2f} GiB: cp {median['cp']:.2f} s, convert {median['convert']:.2f} s, "
               f"{ratio:.2f} times; peak memory {peak_bytes / 2**20:.0f} MiB, one layer {layer_bytes / 2**20:.0f} MiB")
    save(file, {"layers": layers, "num_bytes": num_bytes, "rounds": rounds, "seconds": seconds, "median_s": median,
                "convert_to_cp": ratio, "layer_bytes": layer_bytes, "peak_bytes": peak_bytes})


def write_checkpoint(folder: Path, layers: int) -> tuple[int, int]:
    """InternLM2-7B's shape with fewer layers, one shard per layer; returns the bytes of a layer and of all weights."""
    folder.mkdir()
    hidden, heads, kv_heads, inner, vocab = 4096, 32, 8, 14336, 92544
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": vocab,
        "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": inner, "num_hidden_layers": layers, "max_position_embeddings": 32768, "eos_token_id": 2}))
    layer_tensors = {"attention.wqkv.weight": _random((heads + 2 * kv_heads) * 128, hidden),
                     "attention.wo.weight": _random(hidden, hidden), "attention_norm.weight": _random(hidden),
                     "feed_forward.w1.weight": _random(inner, hidden), "ffn_norm.weight": _random(hidden),
                     "feed_forward.w3.weight": _random(inner, hidden), "feed_forward.w2.weight": _random(hidden, inner)}
    layer_bytes = sum(tensor.nbytes for tensor in layer_tensors.values())
    for layer in range(layers):
        save_file({f"model.layers.{layer}.{name}": tensor for name, tensor in layer_tensors.items()},
                  folder / f"model-{layer + 1:05d}-of-{layers + 1:05d}.safetensors")
    ends = {"model.tok_embeddings.weight": _random(vocab, hidden), "model.norm.weight": _random(hidden),
            "output.weight": _random(vocab, hidden)}
    save_file(ends, folder / f"model-{layers + 1:05d}-of-{layers + 1:05d}.safetensors")
    Tokenizer(models.BPE(vocab={"<s>": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    return layer_bytes, layers * layer_bytes + sum(tensor.nbytes for tensor in ends.values())


def _memory(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def _random(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_()


if __name__ == "__main__":
    run(main)
