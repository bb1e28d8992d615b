"""Quantisation of a checkpoint: what its configuration says of it, and a line for each kind that is not ours.

Ours is AWQ (Lin et al., 2023) as AutoAWQ publishes it: 4 bits, zero points, "gemm" layout. Used by canonical.py, and by
convert.py and source.py for what their caller insists on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from backend.config import GROUP_SIZES, QuantConfig
from backend.errors import CheckpointError
from converter.checkpoint import Checkpoint, read_json

OLD_FILE = "quant_config.json"  # where AutoAWQ wrote it before transformers knew AWQ
_USE = "use an AWQ version of it in 4 bits, or the unquantised checkpoint"


def quant_config(checkpoint: Checkpoint) -> QuantConfig | None:
    """How the checkpoint's weights are quantised; None: they are not. Raises CheckpointError."""
    file, table = checkpoint.config_file, checkpoint.config.get("quantization_config")
    old_file = checkpoint.folder / OLD_FILE
    if not table and old_file.is_file():
        file, table = old_file, {"quant_method": "awq", **read_json(old_file)}
    if not table:
        _refuse_quantised_tensors(checkpoint)
        return None
    method = table.get("quant_method", "unknown")
    if table.get("desc_act") or any(name.endswith(".g_idx") for name in checkpoint.tensors):
        raise CheckpointError(f"{file}: weights in activation order (desc_act, g_idx) are not supported; {_USE}")
    if method != "awq":
        raise CheckpointError(f"{file}: weights quantised with {method!r} are not supported; {_USE}")
    _check_layout(file, table)
    group_size = table.get("group_size", table.get("q_group_size"))
    if not isinstance(group_size, int) or group_size not in GROUP_SIZES:
        raise CheckpointError(f"{file}: group_size={group_size!r} is not supported; use an AWQ version in groups of "
                              f"{', '.join(map(str, GROUP_SIZES))}")
    return QuantConfig(group_size)


def check_format(checkpoint: Checkpoint, quant: QuantConfig | None, model_format: str | None,
                 group_size: int | None = None) -> None:
    """Raises CheckpointError where the checkpoint is not what its user says that it is.

    model_format  of MODEL_FORMATS; None: any.  group_size  None: any"""
    if quant is None and (model_format == "awq" or group_size is not None):
        raise CheckpointError(f"{checkpoint.folder} is no AWQ checkpoint, its weights are not quantised; use the "
                              "format hf, or quantise it: python -m converter.auto_awq "
                              f"{shlex.quote(str(checkpoint.folder))} --work-dir OUT")
    if quant is not None and group_size not in (None, quant.group_size):
        raise CheckpointError(f"{checkpoint.folder} is quantised in groups of {quant.group_size}, not of {group_size}; "
                              f"use --group_size {quant.group_size}, or leave it out")


def _check_layout(file: object, table: Mapping[str, Any]) -> None:
    bits, zero_point = table.get("bits", table.get("w_bit")), table.get("zero_point", True)
    layout = str(table.get("version") or table.get("format") or "gemm").lower()
    if table.get("backend") == "llm-awq":  # what transformers calls yet another layout
        layout = "llm-awq"
    if bits != 4:
        raise CheckpointError(f"{file}: AWQ weights of {bits!r} bits are not supported; {_USE}")
    if layout != "gemm":
        raise CheckpointError(f"{file}: AWQ's layout {layout!r} is not supported; use one in the layout 'gemm'")
    if zero_point is not True:
        raise CheckpointError(f"{file}: AWQ weights without zero points (zero_point={zero_point!r}) are not supported; "
                              "use a version with zero_point=true, or the unquantised checkpoint")


def _refuse_quantised_tensors(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(".qweight"):
            raise CheckpointError(f"{tensor.where} is quantised, but {checkpoint.config_file.name} has no "
                                  "quantization_config; download it again")
