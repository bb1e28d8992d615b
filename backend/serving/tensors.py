"""Tensors: one tensor between the wire and numpy, checked against its declaration.

Raw contents are little-endian, C order; BYTES elements carry a 4-byte length each. Texts of errors are those of Triton
Inference Server. Used by infer_request.py (decode), infer_response.py (encode) and http_tensors.py."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backend.serving.protocol_error import ProtocolError

_LENGTH = struct.Struct("<I")

# Type of a config.pbtxt → (datatype on the wire, numpy dtype, field of InferTensorContents or None).
_TYPES: dict[str, tuple[str, np.dtype, str | None]] = {
    "BOOL": ("BOOL", np.dtype(bool), "bool_contents"),
    "UINT8": ("UINT8", np.dtype("<u1"), "uint_contents"),
    "UINT16": ("UINT16", np.dtype("<u2"), "uint_contents"),
    "UINT32": ("UINT32", np.dtype("<u4"), "uint_contents"),
    "UINT64": ("UINT64", np.dtype("<u8"), "uint64_contents"),
    "INT8": ("INT8", np.dtype("<i1"), "int_contents"),
    "INT16": ("INT16", np.dtype("<i2"), "int_contents"),
    "INT32": ("INT32", np.dtype("<i4"), "int_contents"),
    "INT64": ("INT64", np.dtype("<i8"), "int64_contents"),
    "FP16": ("FP16", np.dtype("<f2"), None),
    "FP32": ("FP32", np.dtype("<f4"), "fp32_contents"),
    "FP64": ("FP64", np.dtype("<f8"), "fp64_contents"),
    "STRING": ("BYTES", np.dtype(object), "bytes_contents"),
}
DTYPES = {datatype: dtype for datatype, dtype, _ in _TYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A declared tensor.

    shape        on the wire, the batch axis included; -1 is any length
    model_shape  what the model sees instead (`reshape` of config.pbtxt), or None; -1 is the batch axis
    datatype     KServe's word for the type;  contents_field: where typed contents of it stand"""

    name: str
    datatype: str
    dtype: np.dtype
    contents_field: str | None
    shape: tuple[int, ...]
    model_shape: tuple[int, ...] | None
    is_optional: bool

    @classmethod
    def declare(cls, name: str, type_name: str, shape: tuple[int, ...], model_shape: tuple[int, ...] | None,
                is_optional: bool) -> TensorSpec:
        """From the words of a config.pbtxt, the type without TYPE_. Raises KeyError for a type that numpy has not."""
        datatype, dtype, contents_field = _TYPES[type_name]
        return cls(name, datatype, dtype, contents_field, shape, model_shape, is_optional)

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a concrete shape fits the declared one."""
        return len(shape) == len(self.shape) and all(
            size == declared or declared == -1 for size, declared in zip(shape, self.shape, strict=True))

    def for_model(self, array: np.ndarray) -> np.ndarray:
        """The array in the shape that the model declared by `reshape`; the same array where it declared none."""
        return array if self.model_shape is None else array.reshape(self.model_shape)


def decode_raw(spec: TensorSpec, shape: tuple[int, ...], raw: bytes, model: str, prefix: str) -> np.ndarray:
    """Raw contents as an array of `shape`, whose sizes are all ≥ 0; numbers are a read-only view.

    Raises ProtocolError INVALID_ARGUMENT where the bytes do not fill the shape exactly."""
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _object_array(_split_strings(spec, count, raw, model, prefix), shape)
    expected = count * spec.dtype.itemsize
    if len(raw) != expected:
        raise ProtocolError("INVALID_ARGUMENT", f"{prefix}input byte size mismatch for input '{spec.name}' for model "
                            f"'{model}'. Expected {expected}, got {len(raw)}")
    if spec.datatype == "BOOL":
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)  # a bool of any other byte is undefined in numpy
    return np.frombuffer(raw, spec.dtype).reshape(shape)


def decode_typed(spec: TensorSpec, shape: tuple[int, ...], values: Sequence, model: str, prefix: str) -> np.ndarray:
    """Typed contents as an array of `shape`. Raises ProtocolError INVALID_ARGUMENT for a wrong count or range."""
    count = math.prod(shape)
    if len(values) != count:
        if spec.datatype == "BYTES":
            raise _string_count(spec, count, len(values), model, prefix)
        size = spec.dtype.itemsize
        raise ProtocolError("INVALID_ARGUMENT", f"{prefix}input byte size mismatch for input '{spec.name}' for model "
                            f"'{model}'. Expected {count * size}, got {len(values) * size}")
    if spec.datatype == "BYTES":
        return _object_array(list(values), shape)
    if spec.dtype.kind in "iu" and count:
        limits = np.iinfo(spec.dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise ProtocolError("INVALID_ARGUMENT", f"{prefix}a value of input '{spec.name}' for model '{model}' does "
                                f"not fit {spec.datatype}; use {limits.min} to {limits.max}")
    return np.array(values, spec.dtype).reshape(shape)


def encode(spec: TensorSpec, array: np.ndarray) -> bytes:
    """An output's raw contents. Raises TypeError where the model gave another type than it declared."""
    if array.dtype != spec.dtype:
        raise TypeError(f"output '{spec.name}' is {array.dtype}, but is declared {spec.datatype}")
    if spec.datatype != "BYTES":
        return array.tobytes()
    if array.size == 1:
        text = array.item()
        return _LENGTH.pack(len(text)) + text
    return encode_strings(array.flat)


def encode_strings(texts: Iterable[bytes]) -> bytes:
    """Raw contents of a BYTES tensor."""
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _split_strings(spec: TensorSpec, count: int, raw: bytes, model: str, prefix: str) -> list[bytes]:
    texts: list[bytes] = []
    offset, end = 0, len(raw)
    while offset < end:
        if len(texts) == count:
            raise _string_count(spec, count, count + 1, model, prefix)
        if end - offset < _LENGTH.size:
            raise ProtocolError(
                "INVALID_ARGUMENT",
                f"{prefix}incomplete string length indicator for inference input '{spec.name}' for model '{model}', "
                f"expecting 4 bytes but only {end - offset} bytes available. Please make sure the string length "
                f"indicator is in one buffer.")
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH.size
        if length > end - offset:
            raise ProtocolError("INVALID_ARGUMENT", f"{prefix}incomplete string data for inference input '{spec.name}' "
                                f"for model '{model}', expecting string of length {length} but only {end - offset} "
                                f"bytes available")
        texts.append(raw[offset:offset + length])
        offset += length
    if len(texts) != count:
        raise _string_count(spec, count, len(texts), model, prefix)
    return texts


def _string_count(spec: TensorSpec, expected: int, got: int, model: str, prefix: str) -> ProtocolError:
    if got < expected:
        return ProtocolError("INVALID_ARGUMENT", f"{prefix}expected {expected} string elements for inference input "
                             f"'{spec.name}' for model '{model}', got {got}")
    return ProtocolError("INVALID_ARGUMENT", f"{prefix}unexpected number of string elements {got} for inference input "
                         f"'{spec.name}' for model '{model}', expecting {expected}")


def _object_array(texts: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)
