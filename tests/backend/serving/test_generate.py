"""Triton's generate extension: inputs by name, as tensors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from backend.serving.generate import read_generate
from backend.serving.model_config import read_model_config
from backend.serving.protocol_error import ProtocolError

TEMPLATE = Path(__file__).resolve().parents[3] / "workspace_template/triton_models"
CHAT = read_model_config(TEMPLATE / "chat/config.pbtxt")


@pytest.mark.parametrize(("value", "shape"), [
    ("a", [1, 1]), (["a"], [1, 1]), (["a", "b"], [1, 2]), ([["a", "b", "c"], ["d", "e", "f"]], [1, 2, 3]), ([], [1, 0]),
    ([[], []], [1, 2, 0])])
def test_nested_lists_have_the_shape_of_their_rows(value, shape):
    assert read_generate({"STOP_WORDS": value}, CHAT, "").inputs[0].shape == shape


@pytest.mark.parametrize("value", [[["a"], ["b", "c"]], ["a", ["b"]], [["a"], "b"], [[["a"]], ["b"]]])
def test_rows_of_different_lengths_are_refused(value):
    with pytest.raises(ProtocolError, match="rows of input 'STOP_WORDS' have different lengths"):
        read_generate({"STOP_WORDS": value}, CHAT, "")


def test_one_long_text_among_short_ones_takes_its_own_memory():
    tracemalloc.start()
    read_generate({"STOP_WORDS": ["a" * 1_000_000, *["b"] * 500]}, CHAT, "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
