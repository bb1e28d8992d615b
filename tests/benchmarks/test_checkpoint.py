"""Checkpoint: the folder holds the shape's own weights, for us and for transformers."""

from __future__ import annotations

import pytest
import torch

from backend.config import EngineConfig
from backend.model_source import open_model
from benchmarks.checkpoint import ensure_checkpoint
from benchmarks.shapes import RandomModel
from tests.benchmarks.tiny import TINY, TINY_AWQ


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensure_checkpoint(TINY, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.mark.parametrize("model", [TINY, TINY_AWQ], ids=["dense", "awq"])
def test_the_folder_reads_back_as_the_same_model(model, tmp_path):
    wanted = {name: tensor[:] for name, tensor in RandomModel(model, EngineConfig(session_len=1)).tensors()}
    source = open_model(ensure_checkpoint(model, tmp_path / "tiny"))
    assert (source.model.quant, source.model.dtype) == (model.quant, model.dtype)
    found = {name: tensor[:] for name, tensor in source.tensors()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].cpu()) for name in wanted)


def test_transformers_finds_every_weight(folder):
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.num_parameters() == sum(
        tensor[:].numel() for _, tensor in RandomModel(TINY, EngineConfig(session_len=1)).tensors())


def test_a_complete_folder_is_left_alone(folder):
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    ensure_checkpoint(TINY, folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
