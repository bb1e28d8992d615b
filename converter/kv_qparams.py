"""Command line of KV calibration: `python -m converter.kv_qparams --model HF_MODEL --output_dir WEIGHTS`.

The work is kv_calibration.py's."""

from __future__ import annotations

from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, end_by_sigterm, run
from backend.logs import warnings_only
from backend.workspace import CONFIG
from converter.calibration_options import calibration_options

EXAMPLES = """
\b
Examples:
  convert internlm2 ./internlm2_5-7b-chat hf
  python -m converter.kv_qparams --model ./internlm2_5-7b-chat --output_dir workspace/triton_models/weights
  then set quant_policy = 4 in workspace/triton_models/weights/config.ini
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EXAMPLES)
@click.option("--model", type=click.Path(path_type=Path), required=True,
              help="Hugging Face folder (or workspace) of the model to observe.")
@click.option("--output_dir", type=click.Path(path_type=Path), required=True,
              help="The workspace's triton_models/weights; past_kv_scale.safetensors is written there.")
@click.option("--symmetry", type=click.BOOL, default=False, show_default=True,
              help="True: the range is as wide below zero as above. False: from the smallest to the largest value.")
@click.option("--offload", type=click.BOOL, default=False, show_default=True,
              help="True: what passes between layers waits in the host's memory, so that the device holds one layer "
                   "and one batch only. False: on the device.")
@click.option("--num_tp", type=click.IntRange(min=1), default=1, show_default=True,
              help="Ranks that will share the model; checked, and otherwise of no effect: each rank reads its heads.")
@calibration_options
def command(model: Path, output_dir: Path, symmetry: bool, offload: bool, num_tp: int, calib_dataset: str | None,
            calib_samples: int, calib_seqlen: int, device: str) -> None:
    """Calibrate the int8 KV cache: the range of keys and values of each layer and KV head on a text.

    The engine takes the scales where quant_policy is 4. One layer's weights are on the device at a time."""
    from converter.calibration_windows import Calibration  # takes seconds, in which Ctrl-C should be understood
    from converter.kv_calibration import calibrate_kv

    file = calibrate_kv(model, output_dir, Calibration(calib_dataset, calib_samples, calib_seqlen),
                        is_symmetric=symmetry, offload=offload, num_tp=num_tp, device=device, show_progress=True)
    is_in_workspace = file.with_name(CONFIG.name).is_file()
    click.echo(f"{file}: written\nnext: " + (
        "set quant_policy = 4 in the config.ini beside it, or give --quant_policy 4" if is_in_workspace else
        f"run it again with a workspace's {CONFIG.parent} as --output_dir, where scales are read from"))


def main() -> None:
    end_by_sigterm()
    with warnings_only():
        run(command)


if __name__ == "__main__":
    main()
