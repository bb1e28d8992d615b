"""Command line of AWQ quantisation: `python -m converter.auto_awq HF_MODEL --work-dir OUT`.

The work is quantise_checkpoint.py's."""

from __future__ import annotations

from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, end_by_sigterm, run
from backend.config import GROUP_SIZES
from backend.errors import ConfigError
from backend.logs import warnings_only
from converter.calibration_options import calibration_options

EXAMPLES = """
\b
Examples:
  python -m converter.auto_awq ./internlm2_5-7b-chat --work-dir ./internlm2_5-7b-chat-awq
  python -m converter.auto_awq ./Qwen2.5-7B-Instruct --work-dir ./qwen-awq --calib-dataset chats.jsonl --w-group-size 64
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EXAMPLES)
@click.argument("model", metavar="HF_MODEL", type=click.Path(path_type=Path))
@click.option("--work_dir", type=click.Path(path_type=Path), required=True,
              help="Folder to write: a Hugging Face checkpoint in AWQ's \"gemm\" layout.")
@calibration_options
@click.option("--w_bits", type=int, default=4, show_default=True, help="Bits of a weight; 4 is the only choice.")
@click.option("--w_group_size", type=click.Choice([str(size) for size in GROUP_SIZES]), default="128",
              show_default=True, help="Weights that share a scale and a zero point.")
@click.option("--batch_size", type=click.IntRange(min=1), default=1, show_default=True,
              help="Windows that run at a time.")
@click.option("--search_scale", type=click.BOOL, default=True, show_default=True,
              help="True: per layer, the scales and ranges with the smallest error in its outputs. "
                   "False: LMDeploy's formula for the scales, whole ranges; faster, with a little more loss.")
def command(model: Path, work_dir: Path, calib_dataset: str | None, calib_samples: int, calib_seqlen: int, device: str,
            w_bits: int, w_group_size: str, batch_size: int, search_scale: bool) -> None:
    """Quantise a Hugging Face checkpoint to 4-bit weights, activation-aware (AWQ, Lin et al., 2023).

    One layer is on the device at a time. An interrupted run goes on where it stopped when the same command is given
    again."""
    if w_bits != 4:
        raise ConfigError(f"--w-bits {w_bits} is not supported; use 4")
    from converter.awq_layer import Recipe  # takes seconds, in which Ctrl-C should be understood
    from converter.calibration_windows import Calibration
    from converter.quantise_checkpoint import quantise_checkpoint

    quantise_checkpoint(model, work_dir, Recipe(int(w_group_size), search_scale),
                        Calibration(calib_dataset, calib_samples, calib_seqlen), batch_size=batch_size, device=device,
                        show_progress=True)
    click.echo(f"{work_dir}: quantised\nnext: convert NAME {work_dir} awq --group_size {w_group_size}, or "
               f"python -m backend.chat NAME {work_dir}")


def main() -> None:
    end_by_sigterm()
    with warnings_only():
        run(command)


if __name__ == "__main__":
    main()
