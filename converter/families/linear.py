"""Linear layers of a checkpoint: a canonical one's tensors out of those of the source's layers that it fuses.

How they are stored, as one matrix each or as AWQ's three tensors, is decided here, so that a family only says which
outputs stand where. Used by the families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backend.errors import CheckpointError
from converter.families.base import CanonicalTensors, SourceTensors
from converter.lazy_tensor import Cast, ColumnRuns, LazyTensor, RowBlock, join_columns, stack_rows

OUTPUTS_PER_WORD = 8  # 4-bit values in an int32 of AWQ's

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a source's linear layer `name`, which has `count` of them.

    runs  [start, stop) ranges in the order in which they are wanted; none: all as they are"""

    name: str
    count: int
    runs: Runs = ()


def linear(take: SourceTensors, ours: str, in_features: int, outputs: Sequence[Outputs], has_bias: bool = False
           ) -> CanonicalTensors:
    """The tensors of the canonical layer `ours`, whose outputs are those of several source layers side by side.

    Raises CheckpointError for one that is missing, misshapen or stored in another way than the rest."""
    if take.quant is None:
        yield f"{ours}.weight", stack_rows([
            _rows(take(f"{part.name}.weight", part.count, in_features), part.runs) for part in outputs])
    else:
        yield from _awq(take, ours, in_features, outputs, take.quant.group_size)
    if has_bias:
        yield f"{ours}.bias", stack_rows([_rows(take(f"{part.name}.bias", part.count), part.runs) for part in outputs])


def _awq(take: SourceTensors, ours: str, in_features: int, outputs: Sequence[Outputs], group_size: int
         ) -> CanonicalTensors:
    num_groups = in_features // group_size
    kinds = {"qweight": (in_features, OUTPUTS_PER_WORD, torch.int32),
             "qzeros": (num_groups, OUTPUTS_PER_WORD, torch.int32), "scales": (num_groups, 1, torch.float16)}
    for part in outputs:
        if take.has(f"{part.name}.weight") and not take.has(f"{part.name}.qweight"):
            raise CheckpointError(f"{take.folder}: {part.name} is not quantised but others are (config.json's "
                                  "modules_to_not_convert), which is not supported; use a version that quantises all "
                                  "layers, or none")
    for kind, (num_rows, each, dtype) in kinds.items():
        stored = [take.stored(f"{part.name}.{kind}", num_rows, part.count // each) for part in outputs]
        yield f"{ours}.{kind}", join_columns([
            _columns(_in_dtype(tensor, dtype), part.runs, each) for tensor, part in zip(stored, outputs, strict=True)])


def _in_dtype(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    if tensor.dtype == dtype:
        return tensor
    if not (dtype.is_floating_point and tensor.dtype.is_floating_point):
        raise CheckpointError(f"{tensor.where} is stored as {_name(tensor.dtype)}, but AWQ's is {_name(dtype)}; "
                              "the checkpoint is of another kind, or damaged: download it again")
    return Cast(tensor, dtype)


def _rows(tensor: LazyTensor, runs: Runs) -> LazyTensor:
    return stack_rows([RowBlock(tensor, start, stop) for start, stop in runs]) if runs else tensor


def _columns(tensor: LazyTensor, runs: Runs, each: int) -> LazyTensor:
    """each: outputs per column; it divides where runs begin and end, since it divides head_dim."""
    return ColumnRuns(tensor, tuple((start // each, stop // each) for start, stop in runs)) if runs else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
