"""Lazy tensors: weights that know their shape and are read, checked and rearranged only where rows are asked for.

A converter never holds a tensor as a whole: it streams blocks of rows. `read_rows` is all that a kind of lazy tensor
has to bring; fusing, joining shards and reordering heads are lazy tensors made of lazy tensors, so a tensor-parallel
rank that slices a fused weight reads only its own bytes. Made by checkpoint.py and families/; read by
safetensors_file.py and, as a ReadableTensor, by the backend's weight loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.errors import CheckpointError
from backend.safetensors_file import FileTensor

READ_BYTES = 4 << 20  # small enough that the finite check and the write find the bytes in the CPU's cache


class LazyTensor(ABC):
    """A tensor of `shape` and `dtype`; `where` names its file and tensor for messages."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    @abstractmethod
    def where(self) -> str: ...

    @abstractmethod
    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        """Fills `out`, contiguous [stop - start, *shape[1:]] in `dtype`. Raises CheckpointError, naming the tensor."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        """`[:]`, `[a:b]` and `[:, a:b]`, with step 1; only the rows asked for are read."""
        rows, *columns = index if isinstance(index, tuple) else (index,)
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1, "lazy tensors are sliced with step 1"
        block = torch.empty((max(stop - start, 0), *self.shape[1:]), dtype=self.dtype)
        self.read_rows(start, stop, block)
        return block[(slice(None), *columns)].contiguous() if columns else block

    def read_into(self, index: tuple[slice, ...], out: Tensor) -> None:
        """Fills `out`, contiguous in the host's memory, with self[index]; of columns, whole rows are read."""
        if len(index) == 1 or out.shape[1:] == self.shape[1:]:
            start, stop, _ = index[0].indices(self.shape[0])
            self.read_rows(start, stop, out)
        else:
            out.copy_(self[index])


class _OfOne(LazyTensor):
    """Like `tensor` but for what a subclass says."""

    __slots__ = ()
    tensor: LazyTensor | FileTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def where(self) -> str:
        return self.tensor.where


class _OfParts(LazyTensor):
    """Made of `parts` of one dtype; messages name the first."""

    __slots__ = ()
    parts: tuple[LazyTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def where(self) -> str:
        return self.parts[0].where


@dataclass(frozen=True, slots=True)
class FiniteTensor(_OfOne):
    """A tensor of a file: a safetensors entry, or a record of a .bin or .pth file. Its values are checked on the way:
    NaN or infinite ones are a CheckpointError."""

    tensor: FileTensor

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        begin = start * torch.Size(self.shape[1:]).numel()
        values = out.view(-1)
        chunk = READ_BYTES // self.dtype.itemsize
        for first in range(0, values.numel(), chunk):
            part = values[first : first + chunk]
            self.tensor.read_runs(begin + first, 0, part[None])
            if self.dtype.is_floating_point and not _is_finite(part):
                raise CheckpointError(f"{self.where} holds NaN or infinite values; the checkpoint is damaged, "
                                      "download it again")


@dataclass(frozen=True, slots=True)
class RowBlock(_OfOne):
    """Rows start..stop of another tensor."""

    tensor: LazyTensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.tensor.shape[1:])

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        self.tensor.read_rows(self.start + start, self.start + stop, out)


@dataclass(frozen=True, slots=True)
class StackedRows(_OfParts):
    """Tensors of one width and dtype, one below the other: how q | k | v and gate | up are fused."""

    parts: tuple[LazyTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        first = 0  # the part's first row in this tensor
        for part in self.parts:
            begin, end = max(start, first), min(stop, first + part.shape[0])
            if begin < end:
                part.read_rows(begin - first, end - first, out[begin - start : end - start])
            first += part.shape[0]


@dataclass(frozen=True, slots=True)
class JoinedColumns(_OfParts):
    """Tensors of one height and dtype, side by side: Meta's shards of a row-parallel weight, and q | k | v and
    gate | up where a weight's columns are its outputs."""

    parts: tuple[LazyTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        torch.cat([part[start:stop] for part in self.parts], dim=-1, out=out)


@dataclass(frozen=True, slots=True)
class ColumnRuns(_OfOne):
    """Runs [start, stop) of another tensor's columns, in the given order; they are read once for all runs."""

    tensor: LazyTensor
    runs: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.tensor.shape[:-1], sum(stop - start for start, stop in self.runs))

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        rows = self.tensor[start:stop]
        torch.cat([rows[..., first:last] for first, last in self.runs], dim=-1, out=out)


@dataclass(frozen=True, slots=True)
class HalfSplitHeads(_OfOne):
    """Rows of q or k in Meta's rotary order (pairs 2j, 2j+1), given in Hugging Face's (j, j + head_dim / 2)."""

    tensor: LazyTensor
    head_dim: int

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        first = start // self.head_dim * self.head_dim  # whole heads are read, since their rows change places
        last = -(-stop // self.head_dim) * self.head_dim
        pairs = self.tensor[first:last].unflatten(0, (-1, self.head_dim // 2, 2))
        out.copy_(pairs.transpose(1, 2).flatten(0, 2)[start - first : stop - first])


@dataclass(frozen=True, slots=True)
class Cast(LazyTensor):
    """Another tensor in another dtype. Raises CheckpointError where a value is out of the new dtype's range."""

    tensor: LazyTensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def where(self) -> str:
        return self.tensor.where

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self.tensor[start:stop])
        if not _is_finite(out):
            dtype = str(self.dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.where} has values beyond the range of {dtype}; use --dtype bf16 or fp32")


def _is_finite(values: Tensor) -> bool:
    if values.dtype.itemsize == 1:  # torch has no arithmetic for float8
        values = values.float()
    # One NaN or infinity makes the sum one; the sum alone can overflow too, and only then is each value looked at.
    return bool(values.sum().isfinite() or values.isfinite().all())


def stack_rows(parts: Sequence[LazyTensor]) -> LazyTensor:
    return parts[0] if len(parts) == 1 else StackedRows(tuple(parts))


def join_columns(parts: Sequence[LazyTensor]) -> LazyTensor:
    return parts[0] if len(parts) == 1 else JoinedColumns(tuple(parts))
