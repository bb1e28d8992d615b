"""Lazy tensors slice like the tensors they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from backend.errors import CheckpointError
from converter.lazy_tensor import Cast, ColumnRuns, HalfSplitHeads, JoinedColumns, LazyTensor, RowBlock, StackedRows
from converter.safetensors_file import read_safetensors, write_safetensors

A, B = torch.randn(16, 6), torch.randn(8, 6)
PAIRS_TO_HALVES = [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, LazyTensor]:
    file = tmp_path_factory.mktemp("lazy") / "model.safetensors"
    save_file({"a": A, "b": B}, file)
    return read_safetensors(file)


def every_kind(a: LazyTensor, b: LazyTensor) -> list[tuple[LazyTensor, torch.Tensor]]:
    return [
        (a, A),
        (StackedRows((a, b)), torch.cat([A, B])),
        (StackedRows((RowBlock(a, 4, 9), b, RowBlock(a, 0, 4))), torch.cat([A[4:9], B, A[:4]])),
        (JoinedColumns((b, b)), torch.cat([B, B], dim=1)),
        (ColumnRuns(a, ((4, 6), (0, 1), (2, 4))), A[:, [4, 5, 0, 2, 3]]),
        (HalfSplitHeads(a, 8), torch.cat([A[:8][PAIRS_TO_HALVES], A[8:][PAIRS_TO_HALVES]])),
        (Cast(a, torch.bfloat16), A.bfloat16()),
    ]


@given(bounds=st.tuples(*[st.integers(0, 30)] * 4))
def test_any_slice_of_any_kind_equals_the_slice_of_the_whole(stored, bounds):
    rows, columns = slice(*sorted(bounds[:2])), slice(*sorted(bounds[2:]))
    for lazy, whole in every_kind(stored["a"], stored["b"]):
        assert lazy.shape == tuple(whole.shape)
        assert lazy.dtype == whole.dtype
        assert torch.equal(lazy[:], whole)
        assert torch.equal(lazy[rows], whole[rows])
        assert torch.equal(lazy[rows, columns], whole[rows, columns])


def test_a_tensor_larger_than_one_read_is_read_whole(tmp_path):
    tensor = torch.arange(3_000_000, dtype=torch.float32).view(3, -1)
    save_file({"large": tensor}, tmp_path / "model.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "model.safetensors")["large"][:], tensor)


def test_written_safetensors_are_read_back_by_the_library(stored, tmp_path: Path):
    from safetensors import safe_open

    written = []
    write_safetensors(tmp_path / "out.safetensors", {"x": StackedRows((stored["a"], stored["b"])),
                                                     "half": Cast(stored["b"], torch.float16)}, written.append)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("x"), torch.cat([A, B]))
        assert torch.equal(file.get_tensor("half"), B.half())
    assert sum(written) == 24 * 6 * 4 + 8 * 6 * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found(tmp_path, value, dtype):
    tensor = torch.zeros(1000, dtype=dtype)
    tensor[777] = value
    save_file({"bad": tensor}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor bad holds NaN"):
        read_safetensors(tmp_path / "model.safetensors")["bad"][:]


def test_finite_values_whose_sum_overflows_are_no_error(tmp_path):
    save_file({"large": torch.full((1000,), 60000.0, dtype=torch.float16)}, tmp_path / "model.safetensors")
    assert read_safetensors(tmp_path / "model.safetensors")["large"][:].max() == 60000


def test_a_cast_that_overflows_names_the_tensor(tmp_path):
    save_file({"large": torch.tensor([1.0, 1e30])}, tmp_path / "model.safetensors")
    large = read_safetensors(tmp_path / "model.safetensors")["large"]
    with pytest.raises(CheckpointError, match=r"tensor large has values beyond the range of float16; use --dtype bf16"):
        Cast(large, torch.float16)[:]


def test_float8_weights_are_read_and_checked(tmp_path):
    """torch has no arithmetic for them, which the check must not meet."""
    file = tmp_path / "model.safetensors"
    damaged = torch.ones(4, 4)
    damaged[2, 1] = torch.nan
    save_file({"good": torch.ones(4, 4).to(torch.float8_e4m3fn), "bad": damaged.to(torch.float8_e4m3fn)}, file)
    tensors = read_safetensors(file)
    assert torch.equal(Cast(tensors["good"], torch.bfloat16)[:], torch.ones(4, 4, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match="tensor bad holds NaN"):
        tensors["bad"][:]
