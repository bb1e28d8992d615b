"""A checkpoint folder serves in the place of a workspace, through the entry point that the backend knows."""

from __future__ import annotations

import importlib
import os
import pickle

import pytest
import torch

from backend.errors import CheckpointError
from backend.model_source import open_model
from backend.workspace import Workspace
from converter.convert import convert_checkpoint
from converter.source import HuggingFaceSource, open_checkpoint
from tests.checkpoints import make_checkpoint, make_meta_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "millrace" / "tokenizers"


def test_a_checkpoint_folder_gives_what_its_workspace_gives(pristine_llama, tmp_path):
    convert_checkpoint("llama", pristine_llama, dst_path=tmp_path / "workspace")
    workspace, source = Workspace(tmp_path / "workspace"), open_model(pristine_llama, "llama")
    assert isinstance(source, HuggingFaceSource)
    assert source.model == workspace.model
    assert source.engine == workspace.engine
    expected = dict(workspace.tensors())
    order = [name for name, _ in source.tensors()]
    assert set(order) == expected.keys()
    assert order[0] == "tok_embeddings.weight"
    assert order[-2:] == ["norm.weight", "output.weight"]
    assert all(torch.equal(tensor[:], expected[name][:]) for name, tensor in source.tensors())
    assert (source.tokenizer_dir / "tokenizer.json").read_bytes() == (
        workspace.tokenizer_dir / "tokenizer.json").read_bytes()


def test_a_source_travels_to_another_process(pristine_llama):
    source = open_model(pristine_llama, "llama")
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert [name for name, _ in copy.tensors()] == [name for name, _ in source.tensors()]


def test_a_meta_folder_takes_start_and_end_from_its_tokenizer(tmp_path):
    make_meta_checkpoint(tmp_path / "meta", make_checkpoint("llama", tmp_path / "hf"))
    for _ in ("prepared", "from the cache"):
        source = open_model(tmp_path / "meta", "llama")
        assert (source.model.bos_token_id, source.model.eos_token_ids) == (1, (2,))


def test_the_tokenizer_is_prepared_once_per_content(llama, cache):
    first = open_checkpoint(llama, "llama").tokenizer_dir
    written = (first / "tokenizer.json").stat().st_mtime_ns
    assert open_checkpoint(llama, "llama").tokenizer_dir == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == written
    (llama / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<|im_end|>"}')
    assert open_checkpoint(llama, "llama").tokenizer_dir != first
    assert len(os.listdir(cache)) == 2


@pytest.mark.parametrize("module", ["tokenizer", "sentencepiece_tokenizer", "byte_level_tokenizer"])
def test_a_tokenizer_prepared_by_other_code_is_not_taken_from_the_cache(llama, monkeypatch, tmp_path, module):
    first = open_checkpoint(llama, "llama").tokenizer_dir
    changed = tmp_path / "changed.py"
    changed.write_text("# another version")
    monkeypatch.setattr(importlib.import_module(f"converter.{module}"), "__file__", str(changed))
    assert open_checkpoint(llama, "llama").tokenizer_dir != first


def test_a_model_without_a_name_has_its_folders(pristine_llama):
    assert open_model(pristine_llama).model.model_name == pristine_llama.name


def test_a_folder_without_a_checkpoint_is_not_taken(tmp_path):
    assert open_checkpoint(tmp_path, None) is None
    with pytest.raises(CheckpointError, match="neither a workspace"):
        open_model(tmp_path)
