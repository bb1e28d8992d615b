"""AWQ layout: quantised weights as they are published ("gemm"), under the source checkpoint's own names.

qweight int32 [in, out / 8], qzeros int32 [in / g, out / 8], scales float16 [in / g, out]; nibble n of a word belongs to
output 8 c + ORDER[n]. Where each row of a canonical tensor is in the source, the model's family is asked itself: it
maps tensors whose values are their own row numbers. Used by quantise_checkpoint.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.config import ModelConfig
from converter.awq_layer import QuantisedLayer
from converter.families.base import Family
from converter.families.linear import OUTPUTS_PER_WORD
from converter.group_quantiser import GroupQuantised
from converter.lazy_tensor import LazyTensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Place:
    """A source tensor, and the rows of the canonical one that are its rows, in its order."""

    name: str
    rows: Tensor


class SourceNames:
    """canonical name → its places in a source checkpoint of `family`."""

    def __init__(self, family: Family, model: ModelConfig) -> None:
        numbered = _NumberedTensors()
        self._places = {name: _places(tensor[:], numbered.taken) for name, tensor in
                        family.map_tensors(numbered, model)}  # type: ignore[arg-type]

    def places(self, canonical_name: str) -> list[Place]:
        return self._places[canonical_name]

    def in_layers(self) -> set[str]:
        """Names of the source's tensors that are part of a decoder layer."""
        return {place.name for name, places in self._places.items() if name.startswith("layers.") for place in places}


def published_layer(layer: QuantisedLayer, index: int, names: SourceNames) -> dict[str, Tensor]:
    """A layer's tensors as the checkpoint holds them, in the host's memory."""
    tensors: dict[str, Tensor] = {}
    for name, weight in layer.weights.items():
        for place in names.places(f"layers.{index}.{name}.weight"):
            rows = place.rows.to(weight.q.device)
            part = GroupQuantised(weight.q[rows], weight.zeros[rows], weight.scales[rows])
            prefix = place.name.removesuffix(".weight")
            tensors |= {f"{prefix}.{key}": tensor.cpu() for key, tensor in published(part).items()}
    for name, tensor in layer.others.items():
        for place in names.places(f"layers.{index}.{name}"):
            tensors[place.name] = tensor[place.rows.to(tensor.device)].cpu()
    return tensors


def published(weight: GroupQuantised) -> dict[str, Tensor]:
    """qweight, qzeros and scales of a weight [out, in]."""
    return {"qweight": pack(weight.q.t()), "qzeros": pack(weight.zeros.t()), "scales": weight.scales.t().contiguous()}


def pack(values: Tensor) -> Tensor:
    """[rows, out] of 0..15 → [rows, out / 8] int32."""
    words = torch.zeros((values.shape[0], values.shape[1] // OUTPUTS_PER_WORD), dtype=torch.int32, device=values.device)
    for nibble, column in enumerate(ORDER):
        words |= values[:, column::OUTPUTS_PER_WORD].to(torch.int32) << 4 * nibble
    return words


@dataclass(frozen=True, slots=True)
class _RowNumbers(LazyTensor):
    """Stands in for a tensor of `shape`: a row is its number, counted on from `first`."""

    name: str
    shape: tuple[int, ...]
    first: int
    dtype: torch.dtype = torch.int64

    @property
    def where(self) -> str:
        return self.name

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        torch.arange(self.first + start, self.first + stop, out=out)


class _NumberedTensors:
    """In the place of SourceTensors: each tensor taken is one of row numbers, all different."""

    is_tied, quant = False, None  # the source's own places, one matrix each

    def __init__(self) -> None:
        self.taken: list[_RowNumbers] = []

    def __call__(self, name: str, *shape: int) -> LazyTensor:
        first = self.taken[-1].first + self.taken[-1].shape[0] if self.taken else 0
        self.taken.append(_RowNumbers(name, shape[:1], first))
        return self.taken[-1]


def _places(numbers: Tensor, taken: list[_RowNumbers]) -> list[Place]:
    places = []
    for tensor in taken:
        own = (numbers >= tensor.first) & (numbers < tensor.first + tensor.shape[0])
        if own.any():
            rows = own.nonzero()[:, 0]
            places.append(Place(tensor.name, rows[numbers[rows].argsort()]))
    return places
