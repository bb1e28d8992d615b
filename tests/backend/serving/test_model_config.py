"""config.pbtxt files, parsed back with the real protobuf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.errors import WorkspaceError
from backend.serving.model_config import read_model_config
from backend.serving.model_repository import ModelRepository
from protocol.models import FOLDERS
from tests.backend.serving.stub_models import Echo

TEMPLATE = Path(__file__).resolve().parents[3] / "workspace_template/triton_models"


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_each_file_of_the_template_declares_its_model(name, folder):
    spec = read_model_config(TEMPLATE / folder / "config.pbtxt")
    assert (spec.name, spec.max_batch_size) == (name, 1)
    assert spec.is_decoupled == (name in ("turbomind", "chat"))
    assert spec.inputs and spec.outputs


def test_a_reshaped_scalar_is_one_by_one_on_the_wire_and_one_for_the_model():
    step = read_model_config(TEMPLATE / "interactive/config.pbtxt").inputs["step"]
    assert (step.shape, step.datatype, step.is_optional) == ((-1, 1), "INT32", True)
    assert step.for_model(np.zeros((1, 1), np.int32)).shape == (1,)


@pytest.mark.parametrize(("content", "text"), [
    ('name: "x" nonsense: 1', "is no model configuration"),
    ('name: "x" input { name: "A" data_type: TYPE_BF16 dims: [ 1 ] }', "tensor A has type BF16"),
    ('name: "x" output { name: "A" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } }',
     "output A has a reshape, which is not supported")])
def test_a_file_that_cannot_be_served_says_why(tmp_path, content, text):
    (tmp_path / "config.pbtxt").write_text(content)
    with pytest.raises(WorkspaceError, match=text):
        read_model_config(tmp_path / "config.pbtxt")


def test_a_model_without_a_configuration_is_an_error(tmp_path):
    with pytest.raises(WorkspaceError, match=r"has no config\.pbtxt for echo; convert again"):
        ModelRepository({"echo": Echo("echo")}, tmp_path)
