"""safetensors files: the header of one as lazy tensors, and one written from lazy tensors in a bounded stream.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, a JSON header
with each tensor's dtype, shape and byte range, then the data. It is read here rather than through the library so that
damage is named by file and tensor and so that reading maps no memory, and written here so that no layer is ever held
as a whole. Used by checkpoint.py and workspace_writer.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

import torch

from backend.errors import CheckpointError
from converter.lazy_tensor import READ_BYTES, FileTensor, LazyTensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
           "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100 << 20  # the library's own limit
_WRITE_BYTES = 512 << 10  # larger writes were slower where memory is scattered: Linux then looks for large free runs


def read_safetensors(file: Path) -> dict[str, FileTensor]:
    """Name → tensor; only the header is read. Raises CheckpointError for a file that is not exactly right."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{file} is truncated or no safetensors file; download it again")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        data = 8 + header_bytes
        tensors, ends = {}, {}
        for name, entry in header.items():
            begin, ends[name] = (data + offset for offset in _whole_numbers(entry["data_offsets"]))
            tensors[name] = FileTensor(file, name, begin, _whole_numbers(entry["shape"]), _DTYPES[entry["dtype"]])
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; download it again") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file} has a damaged header ({type(error).__name__}: {error}); "
                              "download it again") from None
    for name, tensor in tensors.items():
        if not data <= tensor.offset <= ends[name] or tensor.offset + tensor.num_bytes != ends[name]:
            raise CheckpointError(f"{tensor.where} has a shape that does not fit its bytes; download the file again")
        if ends[name] > size:
            raise CheckpointError(f"{tensor.where} is cut off: it ends at byte {ends[name]} of a file of {size}; "
                                  "download the file again")
    return tensors


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


def _whole_numbers(values: list[object]) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"{value!r} is no size or place")
    return tuple(values)


def _write_all(stream: FileIO, view: memoryview) -> None:
    while view:
        view = view[stream.write(view[:_WRITE_BYTES]):]  # an unbuffered write may be partial
