"""AWQ checkpoint: the Hugging Face folder that grows layer by layer, and appears complete or not at all.

Finished layers are shards in a hidden folder beside the destination, under a fingerprint of everything that decides
what they hold; a run with the same fingerprint goes on after the last of them. Used by quantise_checkpoint.py."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import safetensors_file
from backend.accuracy_report import ACCURACY_FILE
from backend.errors import CheckpointError, NotFiniteError
from converter.checkpoint import HF_CONFIG, Checkpoint
from converter.folder_lock import lock_folder
from converter.lazy_tensor import Cast, LazyTensor
from converter.safetensors_file import write_safetensors

logger = logging.getLogger(__name__)
INDEX = "model.safetensors.index.json"
FINGERPRINT = "fingerprint.json"
_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx"}
_SMALL_BYTES = 64 << 20  # of a file that is copied as it is; tokenizers are smaller
_SPARE_BYTES = 64 << 20


class AwqCheckpoint:
    """The folder `destination`, in the making; a context in which an error leaves finished layers, and nothing else.

    NotFiniteError leaves nothing: another checkpoint's layers are others."""

    def __init__(self, destination: Path, source: Checkpoint, num_layers: int, fingerprint: Mapping[str, Any]) -> None:
        """fingerprint: JSON values; what an earlier run with another one has left is deleted, which is said.

        Raises CheckpointError for a destination that is in the way, cannot be written, or is being written by another
        run."""
        self.destination = destination.resolve()
        self.partial = self.destination.parent / f".{self.destination.name}.partial"
        self.num_layers = num_layers
        self._source = source
        _check_destination(self.destination, source.folder.resolve())
        with self._file_system():
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.partial, "--work-dir")
            try:
                if _read(self.partial / FINGERPRINT) != fingerprint:
                    num_layers_left = sum(map(_is_layer, self.partial.iterdir()))
                    if num_layers_left:
                        logger.warning("%s holds %s finished layers of a run with other arguments, another model or "
                                       "text, and these are deleted; to keep such, give each run its own --work-dir",
                                       self.partial, num_layers_left)
                    for file in self.partial.iterdir():  # not the folder, whose lock is ours
                        file.unlink()
                    _write_json(self.partial / FINGERPRINT, fingerprint)
            except BaseException:
                shutil.rmtree(self.partial, ignore_errors=True)
                os.close(self._lock)
                raise

    def __enter__(self) -> AwqCheckpoint:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self.partial.is_dir():  # it was not published
            self._keep_or_remove(error)
        os.close(self._lock)

    def _keep_or_remove(self, error: BaseException) -> None:
        if self.num_finished and not isinstance(error, NotFiniteError):
            logger.warning("%s of %s layers are kept in %s; the same command goes on from there", self.num_finished,
                           self.num_layers, self.partial)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def num_finished(self) -> int:
        """Layers that are on the disk already, from the first on."""
        indices = range(self.num_layers)
        return next((index for index in indices if not self._shard(index).is_file()), self.num_layers)

    def check_space(self, num_bytes: int) -> None:
        """Raises CheckpointError if the whole checkpoint, of num_bytes, does not fit beside what is there."""
        there = sum(file.stat().st_size for file in self.partial.iterdir())
        needed, free = num_bytes - there + _SPARE_BYTES, shutil.disk_usage(self.partial).free
        if needed > free:
            raise CheckpointError(f"{self.destination.parent} has {free / 2**30:.1f} GiB free, but what is still to be "
                                  f"written needs {needed / 2**30:.1f} GiB; free some space or choose another "
                                  "--work-dir")

    def write_layer(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError where the disk is full; earlier layers stay."""
        self._write_shard(index, {name: _Loaded(name, tensor) for name, tensor in tensors.items()})

    def finish(self, others: Mapping[str, LazyTensor], dtype: torch.dtype, quantization: Mapping[str, Any]) -> None:
        """Writes the tensors outside of layers, in `dtype`, and all small files; `partial` is then a whole checkpoint.

        quantization  config.json's quantization_config"""
        self._write_shard(self.num_layers, {name: tensor if tensor.dtype == dtype else Cast(tensor, dtype)
                                            for name, tensor in others.items()})
        with self._file_system():
            shards = [self._shard(index) for index in range(self.num_layers + 1)]
            headers = {shard.name: safetensors_file.read_safetensors(shard, "run again") for shard in shards}
            _write_json(self.partial / INDEX, {
                "metadata": {"total_size": sum(tensor.num_bytes for header in headers.values()
                                               for tensor in header.values())},
                "weight_map": {name: shard for shard, header in headers.items() for name in header}})
            config = dict(self._source.config)
            config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
            _write_json(self.partial / HF_CONFIG, {**config, "quantization_config": dict(quantization)})
            for file in self._source.folder.iterdir():
                if _is_copied(file):
                    shutil.copyfile(file, self.partial / file.name)

    def publish(self) -> None:
        """The finished folder becomes the destination."""
        with self._file_system():
            self.partial.rename(self.destination)  # also onto an empty folder
            (self.destination / FINGERPRINT).unlink()

    def _write_shard(self, index: int, tensors: Mapping[str, LazyTensor]) -> None:
        shard = self._shard(index)
        unfinished = shard.with_suffix(".unfinished")
        with self._file_system():
            try:
                write_safetensors(unfinished, tensors, lambda num_bytes: None)
                unfinished.rename(shard)
            finally:
                unfinished.unlink(missing_ok=True)

    def _shard(self, index: int) -> Path:
        return self.partial / f"model-{index + 1:05d}-of-{self.num_layers + 1:05d}.safetensors"

    @contextmanager
    def _file_system(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            cure = ("make room, then run the same command again, which goes on where this one stopped" if is_full
                    else "choose another --work-dir")
            raise CheckpointError(f"{self.partial} cannot be written: {error.strerror or error}; {cure}") from error


@dataclass(frozen=True, slots=True)
class _Loaded(LazyTensor):
    """A tensor in the host's memory."""

    name: str
    tensor: Tensor

    @property
    def where(self) -> str:
        return self.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read_rows(self, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self.tensor[start:stop])


def _check_destination(destination: Path, source: Path) -> None:
    if destination == source or destination in source.parents or source in destination.parents:
        raise CheckpointError(f"{destination} holds the checkpoint {source}, or lies in it; choose another --work-dir")
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists and is not empty; choose another --work-dir, or remove it")


def _is_layer(file: Path) -> bool:
    """Whether a file is a shard of _shard, and not the last, which holds what is outside of layers."""
    shard = re.fullmatch(r"model-(\d+)-of-(\d+)\.safetensors", file.name)
    return shard is not None and shard[1] != shard[2]


def _is_copied(file: Path) -> bool:
    is_weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
    is_ours = file.name in (HF_CONFIG, ACCURACY_FILE)  # that one is written anew, this one is of the source's weights
    return (file.is_file() and not is_weights and not file.name.startswith(".") and not is_ours
            and file.stat().st_size <= _SMALL_BYTES)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
