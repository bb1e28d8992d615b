"""Shared by the converter's tests: one bf16 LLaMA checkpoint to read, and copies of it to damage."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import pytest
import torch

from backend.models.decoder import DecoderLayer
from converter.layerwise import LayerwiseModel
from tests.awq_checkpoints import make_awq_pair
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def pristine_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bf16 safetensors shards with an index; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine") / "llama"
    make_checkpoint("llama", folder, dtype=torch.bfloat16, max_shard_size="900KB")
    return folder


@pytest.fixture
def llama(pristine_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine_llama, tmp_path / "llama"))


@pytest.fixture(scope="session")
def pristine_awq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LLaMA in groups of 64 and its dense twin; not to be changed."""
    return make_awq_pair("llama", tmp_path_factory.mktemp("pristine_awq"), 64)


@pytest.fixture
def awq(pristine_awq: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the AWQ folder that a test may damage."""
    return Path(shutil.copytree(pristine_awq[0], tmp_path / "awq"))


@pytest.fixture
def layers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[DecoderLayer]]:
    """The layers that are made; each only where the one before is gone."""
    made: list[weakref.ref[DecoderLayer]] = []
    make = LayerwiseModel.layer

    def layer(self: LayerwiseModel, index: int) -> DecoderLayer:
        assert not [one for one in made if one() is not None], "the layer before is still there"
        new = make(self, index)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(LayerwiseModel, "layer", layer)
    return made
