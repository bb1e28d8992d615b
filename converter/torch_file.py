""".bin and .pth files: the tensors of a torch.save archive as lazy tensors, without reading them or running its pickle.

torch.load(weights_only=True) reads the archive's table in a FakeTensorMode, which gives each storage its offset in the
file (PyTorch's notes on serialization) instead of its data; the data are then read like a safetensors file's.
Used by checkpoint.py."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from backend.errors import CheckpointError
from backend.safetensors_file import FileTensor
from converter.lazy_tensor import FiniteTensor, LazyTensor


def read_torch_file(file: Path) -> dict[str, LazyTensor]:
    """Name → tensor. Raises CheckpointError for damage, unsafe pickles and anything but a flat table of tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # a slow import that safetensors checkpoints never need

    try:
        # An archive starts with a local file header; the older format is a plain pickle without offsets.
        if not zipfile.is_zipfile(file):
            raise CheckpointError(f"{file} is truncated or not in torch.save's zip format; download it again, "
                                  "or save the checkpoint as safetensors")
        with FakeTensorMode():
            table = torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{file} holds more than tensors, which could run code when loaded; "
                              "use a safetensors version of the checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; download it again") from None
    except (RuntimeError, EOFError, IndexError, KeyError, ValueError, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file} is damaged ({reason}); download it again") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} holds a {type(table).__name__}, not a table of tensors; it is no checkpoint")
    return {str(name): _file_tensor(file, str(name), value) for name, value in table.items()}


def _file_tensor(file: Path, name: str, value: object) -> LazyTensor:
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{file}: {name} is a {type(value).__name__}, not a tensor; it is no checkpoint")
    if value.layout is not torch.strided or not value.is_contiguous():
        raise CheckpointError(f"{file}: tensor {name} is not stored in order; save the checkpoint as safetensors")
    offset = value.untyped_storage()._checkpoint_offset + value.storage_offset() * value.element_size()
    return FiniteTensor(FileTensor(file, name, offset, tuple(value.shape), value.dtype, "download it again"))
