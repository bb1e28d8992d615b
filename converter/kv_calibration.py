"""KV calibration: the range of keys (after the rotary embedding) and values of every layer and KV head, as scales.

The model runs a layer at a time on the calibration text; what each layer has stored in its KV cache is measured there.
x ≈ q * scale + zero with q an int8. Used by kv_qparams.py, and from Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from backend.accuracy_report import drop_reports, read_reports
from backend.config import EngineConfig, check_engine
from backend.errors import CheckpointError, WorkspaceError
from backend.forward_batch import ForwardBatch
from backend.kv_format import KvFormat
from backend.model_source import ModelSource, open_model
from backend.worker.past_kv_scale import identity
from backend.workspace import CONFIG, PAST_KV_SCALE, Workspace
from converter.calibration_windows import Calibration
from converter.checkpoint import HF_CONFIG
from converter.folder_lock import lock_folder
from converter.layerwise import LayerwiseModel, keys_and_values
from converter.loss_report import report_loss

BATCH_TOKENS = 8192
IDENTITY = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
_COMPARED_ROWS = 256  # of the embedding, which training changes and weight quantisation does not


def calibrate_kv(folder: Path, output_dir: Path, calibration: Calibration, *, is_symmetric: bool = False,
                 offload: bool = False, num_tp: int = 1, device: str = "auto", show_progress: bool = False) -> Path:
    """Writes output_dir's past_kv_scale.safetensors for the model in `folder`, and measures the loss where output_dir
    is a workspace's weights folder. Returns the file.

    is_symmetric  scale = max |x| / 127, zero = 0; else (max - min) / 255 and (max + min) / 2
    offload       hidden states between layers wait in the host's memory, else on the device
    num_tp        ranks that will share the model, checked only
    Raises MillraceError; output_dir is then as it was, but where only the loss could not be measured or stored."""
    source = open_model(folder)
    check_engine(source.model, EngineConfig(session_len=1, tp=num_tp))  # that of windows is checked next
    calibration.check_length(source)
    workspace = _workspace(output_dir)
    with ExitStack() as stack:
        if workspace is not None:
            _check_same_model(source, workspace)
            # Else two runs would measure the same scales, each as its own.
            stack.callback(os.close, lock_folder(output_dir, "--output_dir"))
            read_reports(output_dir)  # a damaged file is an error now, not after the work
        windows = calibration.draw(source)
        layers = LayerwiseModel(source, EngineConfig(session_len=windows.drawn.shape[1], device=device))
        ranges = measure_ranges(layers, windows.drawn, offload, show_progress)
        file = _write(output_dir, scales_of(ranges, is_symmetric), identity(workspace or source))
        if workspace is not None:
            engine = EngineConfig(session_len=windows.drawn.shape[1], quant_policy=4, device=device)
            report_loss(source, workspace, engine, windows.evaluation_text(), output_dir,
                        show_progress=show_progress)
    return file


@torch.inference_mode()
def measure_ranges(layers: LayerwiseModel, token_ids: Tensor, offload: bool, show_progress: bool = False) -> Tensor:
    """The smallest and largest key and value of each head on windows [B, L]: [num_layers, 2, K, 2] float32.

    Raises CheckpointError for a layer whose outputs are not finite."""
    hidden = layers.embed(token_ids)
    if not offload:
        hidden = hidden.to(layers.device)
    batch_size = max(1, BATCH_TOKENS // token_ids.shape[1])
    num_layers = layers.model.num_layers
    with tqdm(total=num_layers * len(hidden), unit=" windows", desc="calibrating",
              disable=None if show_progress else True) as bar:  # None: only on a terminal
        return torch.stack([_layer_ranges(layers, index, hidden, batch_size, bar.update)
                            for index in range(num_layers)])


def _layer_ranges(layers: LayerwiseModel, index: int, hidden: Tensor, batch_size: int,
                  progress: Callable[[int], object]) -> Tensor:
    """[2, K, 2], of keys and of values; hidden goes on to the next layer's input."""
    found = []

    def look(batch: ForwardBatch) -> None:
        found.append(torch.stack([torch.stack((heads.amin((0, 2)), heads.amax((0, 2))), dim=-1)
                                  for heads in keys_and_values(batch)]))

    # Not kept in a variable: a layer's weights go before the next one's come.
    layers.advance(layers.layer(index), index, hidden, batch_size, progress, look)
    each = torch.stack(found).float().cpu()
    return torch.stack((each[..., 0].amin(0), each[..., 1].amax(0)), dim=-1)


def scales_of(ranges: Tensor, is_symmetric: bool) -> Tensor:
    """[..., 2] of smallest and largest → [..., 2] of scale and zero."""
    low, high = ranges.unbind(-1)
    if is_symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / 127
        return torch.stack((scale, torch.zeros_like(scale)), dim=-1)
    return torch.stack(((high - low) / 255, (high + low) / 2), dim=-1)


def _workspace(output_dir: Path) -> Workspace | None:
    """The workspace whose weights folder output_dir is; None for a folder of neither a workspace nor a checkpoint.

    Raises WorkspaceError for a folder in which the engine would not look for scales."""
    if Workspace.looks_like(output_dir):
        raise WorkspaceError(f"{output_dir} is a workspace, which keeps its scales with its weights; "
                             f"use --output_dir {output_dir / CONFIG.parent}")
    if (output_dir / HF_CONFIG).is_file():
        raise WorkspaceError(f"{output_dir} is a checkpoint, but scales are read from a workspace only; "
                             "convert it first, then give the workspace's triton_models/weights")
    folder = output_dir.resolve().parents[1] if len(output_dir.resolve().parents) > 1 else output_dir
    if (folder / CONFIG).is_file() and (folder / CONFIG).parent == output_dir.resolve():
        return Workspace(folder)
    if (output_dir / CONFIG.name).is_file():
        raise WorkspaceError(f"{output_dir} has a {CONFIG.name}, but is no workspace's {CONFIG.parent}; "
                             "give a workspace's weights folder, or an empty one")
    return None


def _check_same_model(source: ModelSource, workspace: Workspace) -> None:
    """Raises WorkspaceError where the workspace holds another model: of another shape, or trained further."""
    for name in IDENTITY:
        ours, theirs = getattr(source.model, name), getattr(workspace.model, name)
        if ours != theirs:
            raise WorkspaceError(f"{workspace.path} holds another model than {source.path}: its {name} is {theirs}, "
                                 f"not {ours}; give the output_dir of this model's workspace, or convert it first")
    dtype = getattr(torch, workspace.model.dtype)
    for name in ("tok_embeddings.weight", "norm.weight"):
        ours, theirs = (dict(each.tensors())[name][:_COMPARED_ROWS].to(dtype) for each in (source, workspace))
        if not torch.equal(ours, theirs):
            raise WorkspaceError(f"{workspace.path} holds another model than {source.path}, of the same shape: their "
                                 f"{name} differ; give the output_dir of this model's workspace, or convert it first")


def _write(output_dir: Path, scales: Tensor, metadata: dict[str, str]) -> Path:
    tensors = {f"layers.{index}.past_kv_scale": layer.contiguous() for index, layer in enumerate(scales)}
    file = output_dir / PAST_KV_SCALE.name
    unfinished = file.with_suffix(".unfinished")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(safetensors.torch.save(tensors, metadata))
            drop_reports(output_dir, KvFormat.CALIBRATED_INT8.value)  # first: at no time is it beside other scales
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written: {error.strerror}; make room, or choose another output_dir"
                              ) from None
    return file
