"""Folders that hold a good checkpoint are opened; each kind of damage is one line that names file and tensor."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch

from backend.errors import CheckpointError
from converter.checkpoint import open_hf, open_meta
from tests.checkpoints import to_bin_shards

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def rewrite_index(folder: Path, name: str, file_name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file_name
    (folder / INDEX).write_text(json.dumps(index))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def test_an_index_is_not_needed(llama):
    with_index = open_hf(llama).tensors
    (llama / INDEX).unlink()
    assert dict(open_hf(llama).tensors) == dict(with_index)


def test_links_into_a_cache_are_followed(llama, tmp_path):
    """Hugging Face's cache holds snapshots/<revision>/<name> as links to blobs/<hash>."""
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert torch.equal(open_hf(snapshot).tensors[NORM][:], open_hf(llama).tensors[NORM][:])


@pytest.mark.parametrize("file_name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../secret.safetensors",
                                       "..\\secret.safetensors", "C:\\secret.safetensors", 7])
def test_an_index_that_points_outside_the_folder_is_refused(llama, file_name):
    (llama.parent / "secret.safetensors").write_bytes(first_shard(llama).read_bytes())
    rewrite_index(llama, NORM, file_name)
    with pytest.raises(CheckpointError, match=r"tensor model.norm.weight is said to be in .* outside the folder"):
        open_hf(llama)


def test_a_missing_shard_is_named_by_the_index(llama):
    shard = first_shard(llama)
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing, which .* names for tensor \S+; download it"):
        open_hf(llama)


def test_a_missing_shard_is_missed_without_an_index(llama):
    (llama / INDEX).unlink()
    shard = first_shard(llama)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        open_hf(llama)


def test_a_tensor_that_is_not_where_the_index_says_is_named(llama):
    rewrite_index(llama, "model.absent.weight", first_shard(llama).name)
    with pytest.raises(CheckpointError, match=rf"{first_shard(llama).name} has no tensor model.absent.weight"):
        open_hf(llama)


def test_a_truncated_shard_names_the_tensor_that_is_cut_off(llama):
    shard = first_shard(llama)
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: tensor \S+ is cut off: it ends at byte \d+"):
        open_hf(llama)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(llama):
    tensor = open_hf(llama).tensors[NORM]
    os.truncate(tensor.tensor.file, tensor.tensor.offset + 10)
    with pytest.raises(CheckpointError, match=r"tensor model.norm.weight is cut off: the file ends early"):
        tensor[:]


@pytest.mark.parametrize("content", [
    b"", b"short", struct.pack("<Q", 10**15) + b"{}", struct.pack("<Q", 4) + b"}{][", struct.pack("<Q", 2) + b"[]",
    struct.pack("<Q", 9) + b'{"a": {}}',
    struct.pack("<Q", 57) + b'{"a":{"dtype":"XX","shape":[1],"data_offsets":[0,4]}}    ' + b"1234",
    struct.pack("<Q", 57) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}   ' + b"1234",
    struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-8,-4]}}   ' + b"1234",
    struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}      ' + b"1234",
])
def test_a_damaged_safetensors_file_is_named(llama, content):
    shard = first_shard(llama)
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{shard.name}.*download"):
        open_hf(llama)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2],
                                    lambda content: content[:-100], lambda content: b"PK\x03\x04" + content[4:200]])
def test_a_damaged_bin_file_is_named(llama, damage):
    to_bin_shards(llama)
    shard = llama / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{shard.name} is .*download it again"):
        open_hf(llama)


def test_a_pickle_that_could_run_code_is_refused(llama, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    to_bin_shards(llama)
    torch.save({"a": Attack()}, llama / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"00001-of-00002.bin holds more than tensors, which could run code"):
        open_hf(llama)
    assert not (tmp_path / "attacked").exists()


def test_a_git_lfs_pointer_is_recognised(llama):
    first_shard(llama).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer, not the weights; run `git lfs pull`"):
        open_hf(llama)


def test_a_folder_without_weights_is_refused(llama):
    for file in [*llama.glob("*.safetensors"), llama / INDEX]:
        file.unlink()
    with pytest.raises(CheckpointError, match=r"has no weights"):
        open_hf(llama)


def test_a_damaged_config_is_named(llama):
    (llama / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not readable JSON"):
        open_hf(llama)


@pytest.mark.parametrize("change", [{"shape": [1.5, 2]}, {"shape": "x"}, {"shape": [10**40, 1]}, {"shape": [-256]},
                                    {"data_offsets": [0.0, 4.0]}, {"data_offsets": [0]}, {"dtype": ["F32"]}])
def test_a_header_with_a_wrong_value_is_damage(llama, change):
    shard = first_shard(llama)
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    next(entry for name, entry in header.items() if name != "__metadata__").update(change)
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + data[start:])
    with pytest.raises(CheckpointError, match="has a damaged header"):
        open_hf(llama)


def test_the_other_format_is_suggested(llama, tmp_path):
    with pytest.raises(CheckpointError, match=r"no params.json.*use the format `hf`"):
        open_meta(llama)
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no config.json.*use the format `llama`"):
        open_hf(tmp_path)


def test_a_missing_meta_shard_is_named(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no consolidated.00.pth"):
        open_meta(tmp_path)
    torch.save({}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"consolidated.00.pth is missing"):
        open_meta(tmp_path)
