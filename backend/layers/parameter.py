"""Parameter: which part of a stored tensor a rank holds, and the module base that declares such parameters.

A model is declared without memory (parameters on the meta device); worker/weight_loader.py gives each parameter its
storage and reads exactly the rank's part. Used by every layer that has weights, and by the weight loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.distributed import TensorParallel


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's part of a stored tensor of `shape`.

    axis     along which ranks divide it
    pieces   [start, stop) ranges along the axis, in the order in which the rank keeps them
    padding  rows of zeros that follow the pieces, where the ranks do not divide the axis"""

    shape: tuple[int, ...]
    axis: int
    pieces: tuple[tuple[int, int], ...]
    padding: int = 0

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Shard:
        """Every rank holds all of it."""
        return cls(shape, 0, ((0, shape[0]),))

    @classmethod
    def parts(cls, shape: tuple[int, ...], axis: int, parts: tuple[int, ...], tp: TensorParallel, each: int = 1
              ) -> Shard:
        """The axis is a row of parts (q | k | v, or gate | up), each divided over the ranks on its own.

        each  how many of what parts count one element of the axis stands for
        Raises ConfigError where tp does not divide a part into whole elements."""
        if tp.size == 1:
            assert sum(parts) == shape[axis] * each, (parts, shape, each)
            return cls(shape, axis, ((0, shape[axis]),))
        pieces, start = [], 0
        for part in parts:
            count = part // each
            assert count * each == part, (parts, each)
            local = tp.split(count, f"the part size of a weight {list(shape)}")
            pieces.append((start + tp.rank * local, start + (tp.rank + 1) * local))
            start += count
        assert start == shape[axis], (parts, shape, each)
        return cls(shape, axis, tuple(pieces))

    @classmethod
    def padded(cls, shape: tuple[int, ...], tp: TensorParallel) -> Shard:
        """Axis 0 in equal runs, the last ones filled up with zeros."""
        local = -(-shape[0] // tp.size)
        start = min(tp.rank * local, shape[0])
        stop = min(start + local, shape[0])
        return cls(shape, 0, ((start, stop),), padding=local - (stop - start))

    @property
    def local_shape(self) -> tuple[int, ...]:
        length = sum(stop - start for start, stop in self.pieces) + self.padding
        return (*self.shape[: self.axis], length, *self.shape[self.axis + 1 :])

    def places(self, local: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """(index, where in `local` the stored tensor's part at that index belongs), which together are the rank's part.

        local  of local_shape; its padding is not a place"""
        offset = 0
        for start, stop in self.pieces:
            index = (*(slice(None) for _ in range(self.axis)), slice(start, stop))
            yield index, local.narrow(self.axis, offset, stop - start)
            offset += stop - start


class ShardedModule(nn.Module):
    """A module whose parameters know their part of the stored tensor of the same (canonical) name."""

    def __init__(self) -> None:
        super().__init__()
        self.shards: dict[str, Shard] = {}
        self.own_dtypes: dict[str, torch.dtype] = {}

    def declare(self, name: str, shard: Shard, dtype: torch.dtype | None = None) -> None:
        """Adds a parameter without memory, in a dtype of its own or, None, in the compute dtype."""
        self.shards[name] = shard
        if dtype is not None:
            self.own_dtypes[name] = dtype
        self.set_parameter(name, torch.empty(shard.local_shape, dtype=dtype, device="meta"))

    def set_parameter(self, name: str, value: Tensor) -> None:
        """Replaces a declared parameter's storage."""
        setattr(self, name, nn.Parameter(value, requires_grad=False))

    def drop_parameter(self, name: str) -> None:
        """Frees a parameter whose values something else holds by now."""
        delattr(self, name)

    def prepare(self) -> None:
        """Called once, when every parameter is loaded."""
