"""Command line of the converter: `convert MODEL_NAME MODEL_PATH [MODEL_FORMAT]`.

Parses and reports; the work is convert.py's. Installed as the command `convert`, also `python -m converter`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backend.command_line import CONTEXT_SETTINGS, end_by_sigterm, run
from backend.config import DTYPE_SPELLINGS, GROUP_SIZES
from backend.model_source import MODEL_FORMATS

if TYPE_CHECKING:
    from converter.convert import Conversion

EXAMPLES = """
\b
Examples:
  convert internlm2-chat-7b ./internlm2-chat-7b
  convert llama-2-7b ./llama-2-7b llama --tokenizer_path ./tokenizer.model
  convert internlm2 ./internlm2_5-7b-chat-awq awq --group_size 128
  convert qwen2.5 ./Qwen2.5-7B-Instruct --dst_path ./qwen --tp 2 --dtype fp16
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EXAMPLES)
@click.argument("model_name")
@click.argument("model_path", type=click.Path(path_type=Path))
@click.argument("model_format", type=click.Choice(MODEL_FORMATS), default="hf")
@click.option("--dst_path", type=click.Path(path_type=Path), default=Path("workspace"), show_default=True,
              help="Folder to write; a workspace that is there is replaced.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True,
              help="Tensor parallel ranks; can be changed later in config.ini.")
@click.option("--dtype", type=click.Choice(DTYPE_SPELLINGS),
              help="Dtype of the weights or, where those are quantised, of all else.  [default: the checkpoint's]")
@click.option("--group_size", type=click.Choice([str(size) for size in GROUP_SIZES]),
              help="The groups that quantised weights must be in.  [default: as the checkpoint says]")
@click.option("--quant_policy", type=int, default=0, show_default=True,
              help="KV cache: 0, the model's dtype; 8, int8; 4, int4, or int8 with calibrated scales.")
@click.option("--use_context_fmha", type=click.IntRange(0, 1), default=1, show_default=True,
              help="1: fused prefill attention; 0: plain.")
@click.option("--session_len", type=click.IntRange(min=1),
              help="Longest prompt + completion, tokens.  [default: the model's]")
@click.option("--tokenizer_path", type=click.Path(path_type=Path, exists=True),
              help="Tokenizer's file or folder.  [default: the checkpoint's]")
@click.option("--force", is_flag=True, help="Replace dst_path even if it is no workspace.")
def command(model_name: str, model_path: Path, model_format: str, dst_path: Path, tp: int, dtype: str | None,
            group_size: str | None, quant_policy: int, use_context_fmha: int, session_len: int | None,
            tokenizer_path: Path | None, force: bool) -> None:
    """Convert a checkpoint folder into a workspace.

    MODEL_NAME chooses the chat template if the checkpoint brings none; MODEL_PATH is a folder with safetensors or .bin
    files (MODEL_FORMAT hf; awq: the same, and the weights must be quantised in 4 bits) or with Meta's
    consolidated.*.pth (llama)."""
    from converter.convert import convert_checkpoint  # takes seconds, in which Ctrl-C should be understood

    conversion = convert_checkpoint(
        model_name, model_path, model_format, dst_path, dtype=dtype, tokenizer_path=tokenizer_path, tp=tp,
        session_len=session_len, quant_policy=quant_policy, use_context_fmha=bool(use_context_fmha),
        group_size=int(group_size) if group_size else None, force=force, show_progress=True)
    click.echo(_summary(conversion))


def main() -> None:
    end_by_sigterm()
    run(command)


def _summary(conversion: Conversion) -> str:
    model = conversion.model
    kv_heads = f", {model.num_kv_heads} KV heads" if model.num_kv_heads != model.num_heads else ""
    return (f"{conversion.workspace}: {model.model_name}, {model.num_layers} layers of {model.hidden_size}, "
            f"{model.num_heads} heads{kv_heads}, {model.weights_in_words(model.dtype)}, "
            f"sessions of {conversion.engine.session_len} tokens\n"
            f"{conversion.num_bytes / 2**20:,.1f} MiB of weights in {conversion.duration_s:.1f} s\n"
            f"next: python -m backend.chat {shlex.quote(model.model_name)} {shlex.quote(str(conversion.workspace))}")


if __name__ == "__main__":
    main()
