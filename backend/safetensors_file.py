"""safetensors files: where each tensor of one lies, and parts of one read into memory that is already there.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, a JSON header
with each tensor's dtype, shape and byte range, then the data. It is read here rather than through the library so that
threads can read straight into pinned buffers, damage is named by file and tensor, and no memory is mapped: a mapped
file that shrinks ends the process. Used by workspace.py, and by the converter for checkpoints."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
          "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_MAX_HEADER_BYTES = 100 << 20  # the library's own limit


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A ReadableTensor (model_source.py) whose values lie one after the other from `offset`, in bytes, of a file.

    cure  what the message of a failed read ends with"""

    file: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    cure: str

    @property
    def where(self) -> str:
        return f"{self.file}: tensor {self.name}"

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        """`[:]`, `[a:b]` and `[:, a:b]`, with step 1; reads nothing else."""
        index = index if isinstance(index, tuple) else (index,)
        lengths = [len(range(size)[part]) for size, part in zip(self.shape, index, strict=False)]
        out = torch.empty((*lengths, *self.shape[len(index) :]), dtype=self.dtype)
        self.read_into(index, out)
        return out

    def read_into(self, index: tuple[slice, ...], out: Tensor) -> None:
        """Fills `out`, contiguous in the host's memory, with self[index]. Raises CheckpointError."""
        rows = range(self.shape[0])[index[0]]
        width = torch.Size(self.shape[1:]).numel()
        if len(index) == 1 or out.shape[1:] == self.shape[1:]:
            self.read_runs(rows.start * width, 0, out[None])
        else:
            self.read_runs(rows.start * width + range(width)[index[1]].start, width, out)

    def read_runs(self, first: int, step: int, out: Tensor) -> None:
        """Fills each out[i] of a contiguous tensor of this dtype with values one after the other, from number
        first + i * step on. Raises CheckpointError, naming the tensor."""
        if not out.numel():
            return
        everything = memoryview(out.view(-1).view(torch.uint8).numpy())
        run_bytes = out.nbytes // len(out)
        position, step_bytes = self.offset + first * self.dtype.itemsize, step * self.dtype.itemsize
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                for begin in range(0, out.nbytes, run_bytes):
                    self._read_run(descriptor, position, everything[begin : begin + run_bytes])
                    position += step_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"{self.where} cannot be read: {error.strerror}; check the disk, or {self.cure}"
                                  ) from None

    def _read_run(self, descriptor: int, position: int, view: memoryview) -> None:
        while view:
            count = os.preadv(descriptor, [view], position)
            if count == 0:
                raise CheckpointError(f"{self.where} is cut off: the file ends early; {self.cure}")
            view, position = view[count:], position + count


def read_safetensors(file: Path, cure: str) -> dict[str, FileTensor]:
    """Name → tensor; only the header is read. Raises CheckpointError, which ends with `cure`, for a file that is not
    exactly right."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{file} is truncated or no safetensors file; {cure}")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        data = 8 + header_bytes
        tensors, ends = {}, {}
        for name, entry in header.items():
            begin, ends[name] = (data + offset for offset in _whole_numbers(entry["data_offsets"]))
            tensors[name] = FileTensor(file, name, begin, _whole_numbers(entry["shape"]), DTYPES[entry["dtype"]], cure)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; {cure}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file} has a damaged header ({type(error).__name__}: {error}); {cure}") from None
    for name, tensor in tensors.items():
        if not data <= tensor.offset <= ends[name] or tensor.offset + tensor.num_bytes != ends[name]:
            raise CheckpointError(f"{tensor.where} has a shape that does not fit its bytes; {cure}")
        if ends[name] > size:
            raise CheckpointError(f"{tensor.where} is cut off: it ends at byte {ends[name]} of a file of {size}; "
                                  f"{cure}")
    return tensors


def _whole_numbers(values: list[object]) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"{value!r} is no size or place")
    return tuple(values)
