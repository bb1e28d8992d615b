"""Upload: the small arrays of a step, from the host to the device in one copy that nobody waits for.

A step's inputs are dataclasses that first hold numpy arrays; uploading gives the same dataclasses with tensors.
Used by input_builder.py, by cuda_graph.py, whose tensors stay where they are, and by model_runner.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

_ALIGNMENT = 16  # bytes; enough for a view in any dtype
_DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}


def upload(value: T, device: torch.device) -> T:
    """A copy of the dataclass (and of those in it) with a tensor on the device in place of each numpy array.

    On the CPU: the arrays' own memory."""
    if device.type == "cpu":
        return _rebuild(value, map(torch.from_numpy, _arrays(value)))
    return unpack(value, pack(value).to(device, non_blocking=True))


def pack(value: Any) -> Tensor:
    """The dataclass's arrays one after the other in a pinned buffer [bytes] uint8, to be copied asynchronously.

    torch's pinned allocator gives the buffer to nobody else until that copy is done."""
    arrays = list(_arrays(value))
    starts = _starts(arrays)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    host = packed.numpy()
    for array, start in zip(arrays, starts, strict=False):
        host[start : start + array.nbytes] = np.frombuffer(np.ascontiguousarray(array), np.uint8)
    return packed


def unpack(value: T, packed: Tensor) -> T:
    """A copy of the dataclass with views of `packed`, made by `pack` of a value of the same shapes, for its arrays."""
    arrays = list(_arrays(value))
    return _rebuild(value, (packed[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
                            for array, start in zip(arrays, _starts(arrays), strict=False)))


def _starts(arrays: list[np.ndarray]) -> list[int]:
    """Where each array begins, and the end, in bytes."""
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return starts


def _arrays(value: Any) -> Iterator[np.ndarray]:
    for field in fields(value):
        member = getattr(value, field.name)
        if isinstance(member, np.ndarray):
            yield member
        elif is_dataclass(member):
            yield from _arrays(member)


def _rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    members = []
    for field in fields(value):
        member = getattr(value, field.name)
        if isinstance(member, np.ndarray):
            member = next(tensors)
        elif is_dataclass(member):
            member = _rebuild(member, tensors)
        members.append(member)
    return type(value)(*members)
