"""safetensors files: one opened as lazy tensors, and one written from lazy tensors in a bounded stream.

Written here rather than through the library so that no layer is ever held as a whole; how one is read, and why, is in
backend/safetensors_file.py. Used by checkpoint.py and workspace_writer.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

import torch

from backend import safetensors_file
from backend.safetensors_file import DTYPES
from converter.lazy_tensor import READ_BYTES, FiniteTensor, LazyTensor

_CURE = "download it again"
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WRITE_BYTES = 512 << 10  # larger writes were slower where memory is scattered: Linux then looks for large free runs


def read_safetensors(file: Path) -> dict[str, LazyTensor]:
    """Name → tensor; only the header is read. Raises CheckpointError for a file that is not exactly right."""
    return {name: FiniteTensor(tensor) for name, tensor in safetensors_file.read_safetensors(file, _CURE).items()}


def write_safetensors(file: Path, tensors: Mapping[str, LazyTensor], progress: Callable[[int], object]) -> None:
    """Writes tensors in the given order, block by block of rows; `progress` is told the bytes of each block.

    Raises CheckpointError from reading and OSError from writing."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.num_bytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes
    with file.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            rows = max(1, READ_BYTES * tensor.shape[0] // max(tensor.num_bytes, 1))
            buffer = torch.empty((min(rows, tensor.shape[0]), *tensor.shape[1:]), dtype=tensor.dtype)
            for start in range(0, tensor.shape[0], rows):
                block = buffer[: min(rows, tensor.shape[0] - start)]
                tensor.read_rows(start, start + len(block), block)
                _write_all(stream, memoryview(block.view(-1).view(torch.uint8).numpy()))
                progress(block.nbytes)


def _write_all(stream: FileIO, view: memoryview) -> None:
    while view:
        view = view[stream.write(view[:_WRITE_BYTES]):]  # an unbuffered write may be partial
