"""AWQ checkpoints made of the tiny ones, each with a dense twin that holds exactly the values its words stand for.

transformers reads AWQ only through extension packages that need a GPU, so its arithmetic is written down here from the
published layout ("gemm", as AutoAWQ saves it): qweight int32 [in, out / 8] and qzeros int32 [in / group, out / 8],
eight outputs in a word, output 8c + ORDER[n] in bits 4n to 4n + 3; scales float16 [in / group, out];
weight[out, in] = (q - zero) * scale. Used by the tests of converter, layers and loader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints import make_checkpoint

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CONFIG = {"quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": True, "modules_to_not_convert": None}


def make_awq_pair(family: str, folder: Path, group_size: int) -> tuple[Path, Path]:
    """A tiny AWQ folder of one of FAMILIES, which two ranks can divide in groups of up to 64, and its dense twin."""
    make_checkpoint(family, folder / "dense", intermediate_size=384)
    quantise_checkpoint(folder / "dense", folder / "awq", group_size)
    return folder / "awq", folder / "dense"


def quantise_checkpoint(dense: Path, awq: Path, group_size: int) -> None:
    """Writes `dense`, quantised, to the folder `awq`; `dense` then holds what that stands for, in float32."""
    shutil.copytree(dense, awq)
    tensors: dict[str, Tensor] = {}
    for file in dense.glob("model*.safetensors*"):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        file.unlink()
        (awq / file.name).unlink()
    quantised = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and name.startswith("model.layers."):
            parts = quantise(tensor, group_size)
            quantised |= {f"{name.removesuffix('.weight')}.{kind}": part for kind, part in parts.items()}
            tensors[name] = dequantise(**parts)
        else:
            quantised[name] = tensor.half()
            tensors[name] = quantised[name].float()
    save_file(quantised, awq / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(awq, quantization_config={**CONFIG, "group_size": group_size})


def quantise(weight: Tensor, group_size: int) -> dict[str, Tensor]:
    """weight [out, in] → qweight, qzeros, scales: to the nearest of 16 even steps between a group's extremes."""
    groups = weight.float().t().unflatten(0, (-1, group_size))  # [in / group, group, out]
    least, most = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((most - least) / 15).half()
    zeros = (-least / scales.float()).round().clamp(0, 15)
    q = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15)
    return {"qweight": words(q.flatten(0, 1).long()), "qzeros": words(zeros.long()), "scales": scales}


def words(values: Tensor) -> Tensor:
    """[rows, out] in 0 … 15 → [rows, out / 8] int32."""
    packed = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for nibble, output in enumerate(ORDER):
        packed |= values[:, output::8] << (4 * nibble)
    return torch.where(packed < 2**31, packed, packed - 2**32).int()


def nibbles(packed: Tensor) -> Tensor:
    """The inverse of `words`."""
    values = packed.new_empty(packed.shape[0], packed.shape[1] * 8)
    for nibble, output in enumerate(ORDER):
        values[:, output::8] = (packed >> (4 * nibble)) & 15
    return values


def dequantise(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """The weight [out, in] in float32, exact: (q - zero) has 5 bits, a scale 11."""
    group_size = qweight.shape[0] // scales.shape[0]
    spread = nibbles(qweight) - nibbles(qzeros).repeat_interleave(group_size, 0)
    return (spread * scales.float().repeat_interleave(group_size, 0)).t().contiguous()


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; a None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the table of tensors of an AWQ folder in place."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
