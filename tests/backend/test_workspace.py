"""Workspace: what is incomplete, or does not agree with its config.ini, is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.config import render_config
from backend.errors import WorkspaceError
from backend.workspace import CONFIG, TOKENIZER, WEIGHTS, Workspace, weight_files
from tests.backend.test_config import ENGINE, MODEL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the right names for MODEL's two layers; their contents are not read."""
    for needed in (TOKENIZER / "tokenizer.json", *(WEIGHTS / name for name in weight_files(MODEL.num_layers))):
        (tmp_path / needed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed).touch()
    (tmp_path / CONFIG).write_text(render_config(MODEL, ENGINE))
    return tmp_path


def test_a_complete_workspace_is_opened(folder):
    assert (Workspace(folder).model, Workspace(folder).engine) == (MODEL, ENGINE)


def test_a_missing_config_names_the_command_that_makes_one(folder):
    (folder / CONFIG).unlink()
    with pytest.raises(WorkspaceError, match=r"no .*config.ini; make one with: convert .* --force --dst_path"):
        Workspace(folder)


def test_a_missing_layer_is_named(folder):
    (folder / WEIGHTS / "layers.1.safetensors").unlink()
    with pytest.raises(WorkspaceError, match=r"layers\.1\.safetensors is missing"):
        Workspace(folder)


def test_a_left_over_layer_is_named(folder):
    (folder / WEIGHTS / "layers.2.safetensors").touch()
    with pytest.raises(WorkspaceError, match=r"holds layers\.2\.safetensors, .* num_layer=2; correct num_layer"):
        Workspace(folder)
