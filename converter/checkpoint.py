"""Checkpoint: a folder of weights opened as configuration and named lazy tensors; nothing is read but headers.

Knows files, shards and index files of Hugging Face and Meta folders; does not know what a tensor means. Names in index
files are judged as text, because Hugging Face's own cache links its files to a folder elsewhere.
Used by source.py and convert.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from backend.errors import CheckpointError
from converter.lazy_tensor import LazyTensor, join_columns, stack_rows
from converter.safetensors_file import read_safetensors
from converter.torch_file import read_torch_file

HF_CONFIG = "config.json"
META_CONFIG = "params.json"
GENERATION_CONFIG = "generation_config.json"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """config: config.json or params.json; generation_config: {} where there is none; tensors: source name → tensor."""

    folder: Path
    config_file: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]

    @property
    def is_meta(self) -> bool:
        return self.config_file.name == META_CONFIG


def open_folder(folder: Path, model_format: str | None = None) -> Checkpoint:
    """A checkpoint of one of MODEL_FORMATS; None: by which configuration it has."""
    is_meta = not (folder / HF_CONFIG).is_file() if model_format is None else model_format == "llama"
    return open_meta(folder) if is_meta else open_hf(folder)


def open_hf(folder: Path) -> Checkpoint:
    """A Hugging Face folder: safetensors if there are any, else pytorch_model*.bin; with or without an index."""
    config_file = folder / HF_CONFIG
    if not config_file.is_file():
        cure = "use the format `llama`" if (folder / META_CONFIG).is_file() else "give a checkpoint's own folder"
        raise CheckpointError(f"{folder} has no {HF_CONFIG}, so it is no Hugging Face checkpoint; {cure}")
    for index, pattern, read in (("model.safetensors.index.json", "model*.safetensors", read_safetensors),
                                 ("pytorch_model.bin.index.json", "pytorch_model*.bin", read_torch_file)):
        if (folder / index).is_file():
            return _checkpoint(config_file, _read_indexed(folder / index, read))
        shards = sorted(folder.glob(pattern))
        if shards:
            return _checkpoint(config_file, _read_shards(shards, read))
    raise CheckpointError(f"{folder} has no weights: neither model*.safetensors nor pytorch_model*.bin; "
                          "download the checkpoint again")


def open_config(file: Path) -> Checkpoint:
    """A config.json by itself; there are no tensors."""
    return _checkpoint(file, {})


def open_meta(folder: Path) -> Checkpoint:
    """A folder as Meta publishes it: params.json and consolidated.NN.pth, whose model-parallel shards are joined."""
    config_file = folder / META_CONFIG
    if not config_file.is_file():
        cure = "use the format `hf`" if (folder / HF_CONFIG).is_file() else "give a checkpoint's own folder"
        raise CheckpointError(f"{folder} has no {META_CONFIG}, so it is no Meta checkpoint; {cure}")
    shards = sorted(folder.glob("consolidated.*.pth"))
    for number, shard in enumerate(shards):
        if shard.name != f"consolidated.{number:02d}.pth":
            raise CheckpointError(f"{folder / f'consolidated.{number:02d}.pth'} is missing; download it again")
    if not shards:
        raise CheckpointError(f"{folder} has no consolidated.00.pth; download the checkpoint again")
    checkpoint = _checkpoint(config_file, {})
    return Checkpoint(folder, config_file, checkpoint.config, {}, _join_meta(shards, checkpoint.config.get("dim")))


def read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}); download it again") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is not a JSON object; download it again")
    return document


def _checkpoint(config_file: Path, tensors: Mapping[str, LazyTensor]) -> Checkpoint:
    generation_file = config_file.parent / GENERATION_CONFIG
    generation_config = read_json(generation_file) if generation_file.is_file() else {}
    return Checkpoint(config_file.parent, config_file, read_json(config_file), generation_config, tensors)


_Reader = Callable[[Path], Mapping[str, LazyTensor]]


def _read_indexed(index: Path, read: _Reader) -> dict[str, LazyTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    shards: dict[str, Mapping[str, LazyTensor]] = {}
    tensors: dict[str, LazyTensor] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or _escapes(file_name):
            raise CheckpointError(f"{index}: tensor {name} is said to be in {file_name!r}, outside the "
                                  "folder; do not trust this checkpoint")
        if file_name not in shards:
            shard = index.parent / file_name
            if not shard.is_file():
                raise CheckpointError(f"{shard} is missing, which {index.name} names for tensor {name}; "
                                      "download it again")
            shards[file_name] = _read_shard(shard, read)
        if name not in shards[file_name]:
            raise CheckpointError(f"{index.parent / file_name} has no tensor {name}, which {index.name} says is there; "
                                  "download both again")
        tensors[name] = shards[file_name][name]
    return tensors


def _read_shards(shards: list[Path], read: _Reader) -> dict[str, LazyTensor]:
    numbered = [match for shard in shards if (match := re.fullmatch(r"(.+)-(\d+)-of-(\d+)(\.\w+)", shard.name))]
    for match in numbered[:1]:
        stem, number, total, suffix = match.groups()
        for position in range(1, int(total) + 1):
            shard = shards[0].parent / f"{stem}-{position:0{len(number)}d}-of-{total}{suffix}"
            if not shard.is_file():
                raise CheckpointError(f"{shard} is missing; download it again")
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        for name, tensor in _read_shard(shard, read).items():
            if name in tensors:
                raise CheckpointError(f"{tensor.where} is also in {tensors[name].where.partition(': ')[0]}; "
                                      "keep the files of one checkpoint only")
            tensors[name] = tensor
    return tensors


def _read_shard(shard: Path, read: _Reader) -> Mapping[str, LazyTensor]:
    with shard.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(f"{shard} is a Git LFS pointer, not the weights; "
                                  f"run `git lfs pull` in {shard.parent}")
    return read(shard)


def _escapes(file_name: str) -> bool:
    # A Windows path is judged too: it also catches a drive letter and a backslash.
    return any(path.is_absolute() or path.drive or ".." in path.parts
               for path in (PurePosixPath(file_name), PureWindowsPath(file_name)))


_META_COLUMNS = ("wo", "w2")
_META_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")


def _join_meta(shards: list[Path], dim: object) -> dict[str, LazyTensor]:
    """Meta's model-parallel shards as whole tensors. Which axis is split follows from the layer (Meta's llama code)."""
    tables = [_read_shard(shard, read_torch_file) for shard in shards]
    joined: dict[str, LazyTensor] = {}
    for name in tables[0]:
        for shard, table in zip(shards, tables, strict=True):
            if name not in table:
                raise CheckpointError(f"{shard}: tensor {name} is missing; download the file again")
        parts = [table[name] for table in tables]
        for part in parts:
            if part.shape != parts[0].shape:
                raise CheckpointError(f"{part.where} has shape {list(part.shape)}, but the first shard's has "
                                      f"{list(parts[0].shape)}; download both files again")
        layer = name.removesuffix(".weight").rpartition(".")[2]
        # The embedding is split by columns in LLaMA 1 and 2, by rows from LLaMA 3 on.
        if layer in _META_ROWS or (layer == "tok_embeddings" and parts[0].shape[-1:] == (dim,)):
            joined[name] = stack_rows(parts)
        elif layer in _META_COLUMNS or layer == "tok_embeddings":
            joined[name] = join_columns(parts)
        else:
            joined[name] = parts[0]
    return joined

