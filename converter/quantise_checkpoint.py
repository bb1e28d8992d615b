"""AWQ: a Hugging Face checkpoint becomes one of four-bit weights, one layer at a time.

Each layer is run as it is on the calibration text; from what its linear layers are given follow the scales
(awq_layer.py), and its outputs are the next layer's inputs. (Inputs from layers that are quantised already were no
better on the demo model, and an interrupted run would need them back.) Used by auto_awq.py, and from Python."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from backend.config import EngineConfig, QuantConfig
from backend.errors import CheckpointError, NotFiniteError
from converter.awq_checkpoint import AwqCheckpoint
from converter.awq_layer import LINEARS, Recipe, observe, quantise_layer
from converter.awq_layout import SourceNames, published_layer
from converter.calibration_windows import Calibration
from converter.canonical import family_of
from converter.checkpoint import Checkpoint, open_hf
from converter.group_quantiser import BITS
from converter.layerwise import LayerwiseModel
from converter.loss_report import report_loss
from converter.source import HuggingFaceSource, open_checkpoint

logger = logging.getLogger(__name__)
FORMAT = 1  # of what a partial run leaves; another Millrace's is not gone on with


def quantise_checkpoint(folder: Path, destination: Path, recipe: Recipe, calibration: Calibration, *,
                        batch_size: int = 1, device: str = "auto", show_progress: bool = False) -> None:
    """Writes the AWQ checkpoint of the Hugging Face folder `folder` to `destination`, and measures its loss.

    batch_size  windows that run at a time
    device      auto, cpu or cuda
    Raises MillraceError; the destination is then as it was, but where only the loss could not be measured or stored,
    and finished layers wait for the same call."""
    checkpoint, source = _open(folder)
    stored = torch.bfloat16 if source.model.dtype == "float32" else getattr(torch, source.model.dtype)
    model = dataclasses.replace(source.model, quant=QuantConfig(recipe.group_size))  # checks the shapes
    calibration.check_length(source)
    windows = calibration.draw(source)
    layers = LayerwiseModel(source, EngineConfig(session_len=windows.drawn.shape[1], device=device))
    family = family_of(checkpoint)
    names = SourceNames(family, source.model)
    in_layers = names.in_layers()
    others = {name: tensor for name, tensor in checkpoint.tensors.items()
              if name not in in_layers and not name.endswith(family.ignored_suffixes)}
    num_bytes = _num_bytes(source, recipe.group_size) + sum(tensor.num_bytes for tensor in others.values())
    fingerprint = {"format": FORMAT, "source": _files(folder), "recipe": dataclasses.asdict(recipe),
                   "dtype": str(layers.dtype), "windows": hashlib.sha256(windows.drawn.numpy().tobytes()).hexdigest()}
    with AwqCheckpoint(destination, checkpoint, model.num_layers, fingerprint) as output:
        output.check_space(num_bytes)
        for name, tensor in others.items():
            if not tensor[:].isfinite().all():
                raise NotFiniteError(f"{name} holds NaN or infinite values; the checkpoint is damaged, download it "
                                     "again")
        _quantise_layers(layers, windows.drawn, recipe, stored, names, output, batch_size, show_progress)
        output.finish(others, stored, {"quant_method": "awq", "version": "gemm", "bits": BITS,
                                       "group_size": recipe.group_size, "zero_point": True})
        quantised = open_checkpoint(output.partial, None)
        assert quantised is not None, "it has just been written"
        quantised = dataclasses.replace(quantised, model=dataclasses.replace(
            quantised.model, model_name=output.destination.name))
        engine = EngineConfig(session_len=windows.drawn.shape[1], device=device)
        try:  # before it is published: what is interrupted here goes on here
            report_loss(source, quantised, engine, windows.evaluation_text(), output.partial,
                        show_progress=show_progress)
        except Exception:
            output.publish()  # the weights are what they are
            raise
        output.publish()


def _open(folder: Path) -> tuple[Checkpoint, HuggingFaceSource]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the folder of a downloaded Hugging Face checkpoint")
    checkpoint = open_hf(folder)
    source = open_checkpoint(folder, None)
    assert source is not None, "open_hf found a configuration"
    if source.model.quant is not None:
        raise CheckpointError(f"{folder} is quantised already; give the unquantised checkpoint")
    return checkpoint, source


def _quantise_layers(layers: LayerwiseModel, token_ids: Tensor, recipe: Recipe, stored: torch.dtype,
                     names: SourceNames, output: AwqCheckpoint, batch_size: int, show_progress: bool) -> None:
    num_layers = output.num_layers
    if output.num_finished:
        logger.info("going on after layer %s of %s", output.num_finished, num_layers)
    if output.num_finished == num_layers:
        return
    hidden = layers.embed(token_ids)
    with tqdm(total=num_layers * len(hidden), unit=" windows", desc="quantising",
              disable=None if show_progress else True) as bar:  # None: only on a terminal
        for index in range(num_layers):
            bar.set_postfix_str(f"layer {index + 1} of {num_layers}")
            if index < output.num_finished:
                layers.advance(layers.layer(index), index, hidden, batch_size, bar.update)
            else:
                layer = layers.layer(index)
                statistics = observe(layer, recipe.group_size)
                layers.advance(layer, index, hidden, batch_size, bar.update)
                quantised = quantise_layer(layer, layers.model, statistics, recipe, stored)
                tensors = published_layer(quantised, index, names)
                _check_finite(tensors)
                output.write_layer(index, tensors)
                del layer, statistics, quantised, tensors  # before the next layer's weights come


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises NotFiniteError where weights are so large that AWQ's float16 scales cannot hold them."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NotFiniteError(f"{name} would hold values beyond {torch.finfo(tensor.dtype).max:g}, the greatest in "
                                  "AWQ's layout: the weights are too large, or the checkpoint is damaged; use it "
                                  "unquantised, or download it again")


def _files(folder: Path) -> dict[str, list[int]]:
    """Name → size and time of change of what decides a checkpoint's content."""
    found = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(found)}


def _num_bytes(source: HuggingFaceSource, group_size: int) -> int:
    """Of the quantised layers."""
    total = 0.0
    for name, tensor in source.tensors():
        if name.endswith(tuple(f".{linear}.weight" for linear in LINEARS)):
            count = torch.Size(tensor.shape).numel()
            total += count * BITS / 8 + count / group_size * (torch.float16.itemsize + BITS / 8)
        elif name.startswith("layers."):
            total += tensor.num_bytes
    return int(total)
