"""A safetensors file is read as the library reads it, in any part, and refused where it is not exactly right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import CheckpointError
from backend.safetensors_file import FileTensor, read_safetensors

CURE = "convert again"
WRITTEN = {"matrix": torch.arange(16 * 6).view(16, 6).float(), "vector": torch.arange(7).to(torch.bfloat16),
           "bytes": torch.arange(24, dtype=torch.uint8).view(2, 3, 4)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileTensor]:
    file = tmp_path_factory.mktemp("stored") / "model.safetensors"
    save_file(WRITTEN, file)
    return read_safetensors(file, CURE)


@given(bounds=st.tuples(*[st.integers(0, 20)] * 4))
def test_any_slice_equals_the_slice_of_the_whole(stored: dict[str, FileTensor], bounds: tuple[int, ...]) -> None:
    rows, columns = slice(*sorted(bounds[:2])), slice(*sorted(bounds[2:]))
    for name, whole in WRITTEN.items():
        assert torch.equal(stored[name][:], whole)
        assert torch.equal(stored[name][rows], whole[rows])
        assert (stored[name].shape, stored[name].dtype) == (tuple(whole.shape), whole.dtype)
    assert torch.equal(stored["matrix"][rows, columns], WRITTEN["matrix"][rows, columns])


def test_of_columns_nothing_else_is_read(stored: dict[str, FileTensor], monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, num_read = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *call: num_read.append(preadv(*call)) or num_read[-1])
    out: Tensor = torch.empty(5, 2)
    stored["matrix"].read_into((slice(3, 8), slice(1, 3)), out)
    assert torch.equal(out, WRITTEN["matrix"][3:8, 1:3])
    assert sum(num_read) == out.nbytes


@pytest.mark.parametrize(("cut", "cause"), [
    (4, "is truncated or no safetensors file"), (60, "is truncated or no safetensors file"),
    (-1, r"tensor \S+ is cut off: it ends at byte \d+ of a file of \d+")], ids=["length", "header", "data"])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path: Path, cut: int, cause: str) -> None:
    file = tmp_path / "layers.0.safetensors"
    save_file(WRITTEN, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=f"layers.0.safetensors.* ?{cause}; convert again"):
        read_safetensors(file, CURE)


def test_a_file_that_is_gone_when_it_is_read_is_named(tmp_path: Path) -> None:
    save_file(WRITTEN, tmp_path / "model.safetensors")
    stored = read_safetensors(tmp_path / "model.safetensors", CURE)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tensor vector cannot be read: No such file.*convert again"):
        stored["vector"][:]
