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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import ModelConfig
from benchmarks.first_token import ENGINES
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES, STD
from converter.convert import convert_checkpoint

LAYERS_PER_FILE = 8
READ_BYTES = 16 << 20


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.start --engines millrace")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Separated by commas.")
@click.option("--dir", "parent", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()),
              show_default=True, help="Where checkpoints are kept; twice their size is needed with --workspace.")
@click.option("--workspace", is_flag=True, help="Convert, and start from the workspace too.")
@click.option("--rounds", default=3, show_default=True, help="Warm starts; their median counts.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(shape: str, engines: str, parent: Path, workspace: bool, rounds: int, file: Path | None) -> None:
    """Seconds from the start of a process to its first token."""
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a CUDA GPU; on a CPU use: python -m benchmarks.cpu")
    folder = parent / f"millrace-{shape}"
    if not folder.is_dir():
        write_checkpoint(SHAPES[shape], folder)
    starts = [(engine, folder) for engine in engines.split(",")]
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
    process = subprocess.run(command, env={**os.environ, "TRITON_CACHE_DIR": kernel_cache}, stdout=subprocess.PIPE,
                             text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def write_checkpoint(model: ModelConfig, folder: Path) -> None:
    """A Hugging Face folder of LLaMA's layout with normal random weights, made on the GPU; norms are 1."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": model.dtype,
        "vocab_size": model.vocab_size, "hidden_size": model.hidden_size, "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads, "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim, "intermediate_size": model.intermediate_size, "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps, "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": False, "bos_token_id": model.bos_token_id, "eos_token_id": model.eos_token_ids[0]}))
    tokenizer = Tokenizer(models.BPE(vocab={f"t{number}": number for number in range(model.vocab_size)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(partial / "tokenizer.json"))
    torch.manual_seed(0)
    groups = list(_groups(model))
    weight_map = {}
    for number, shapes in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({key: _random(shape, model.dtype) for key, shape in shapes.items()}, partial / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    partial.rename(folder)


def _groups(model: ModelConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of each file's tensors."""
    hidden, inner = model.hidden_size, model.intermediate_size
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (heads, hidden),
              "self_attn.k_proj": (kv_heads, hidden), "self_attn.v_proj": (kv_heads, hidden),
              "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
              "mlp.down_proj": (hidden, inner)}
    for first in range(0, model.num_layers, LAYERS_PER_FILE):
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()
               for layer in range(first, min(first + LAYERS_PER_FILE, model.num_layers))}
    yield {"model.embed_tokens.weight": (model.vocab_size, hidden), "model.norm.weight": (hidden,),
           "lm_head.weight": (model.vocab_size, hidden)}


def _random(shape: tuple[int, ...], dtype: str) -> Tensor:
    values = torch.ones(shape, dtype=getattr(torch, dtype), device="cuda")
    return (values if len(shape) == 1 else values.normal_(0, STD)).cpu()


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
