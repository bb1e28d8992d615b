"""Parts of stored tensors reach their places: cut, cast, on the device, by as many threads as there are."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import CheckpointError
from backend.safetensors_file import FileTensor, read_safetensors
from backend.worker import weight_reader
from backend.worker.weight_reader import WeightPart, read_parts

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@dataclass
class Sliced:
    """A StoredTensor that can only be sliced, and counts how often it was."""

    values: Tensor
    num_reads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        self.num_reads += 1
        return self.values[index]


@dataclass
class Readable(Sliced):
    """A ReadableTensor in memory that remembers what was read."""

    indices: list[tuple[slice, ...]] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def read_into(self, index: tuple[slice, ...], out: Tensor) -> None:
        self.indices.append(index)
        out.copy_(self.values[index])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_reader, "PART_BYTES", 64)
    monkeypatch.setattr(weight_reader, "CPU_PART_BYTES", 64)


def read(parts: list[WeightPart], device: str) -> list[int]:
    counts: list[int] = []
    read_parts(parts, torch.device(device), counts.append)
    return counts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_is_read_in_parts_of_rows_and_cast(device: str, dtype: torch.dtype) -> None:
    stored = Readable(torch.randn(21, 6))
    target = torch.full((21, 6), torch.nan, dtype=dtype, device=device)
    counts = read([WeightPart(stored, (slice(0, 21),), target)], device)
    assert torch.equal(target.cpu(), stored.values.to(dtype))
    assert sum(counts) == stored.values.nbytes
    assert max(counts) == 48  # two rows of 24 bytes
    assert sorted(index[0].start for index in stored.indices) == list(range(0, 21, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_columns_go_to_columns(device: str) -> None:
    """As of a fused weight whose outputs are its columns: the target is not contiguous."""
    stored = Readable(torch.randn(9, 8))
    target = torch.zeros(9, 4, device=device)
    read([WeightPart(stored, (slice(None), slice(6, 8)), target[:, :2]),
          WeightPart(stored, (slice(None), slice(1, 3)), target[:, 2:])], device)
    assert torch.equal(target.cpu(), stored.values[:, [6, 7, 1, 2]])


@pytest.mark.parametrize("device", DEVICES)
def test_a_tensor_that_can_only_be_sliced_is_sliced_once(device: str) -> None:
    stored = Sliced(torch.randn(40, 4))
    target = torch.zeros(30, 4, device=device)
    assert read([WeightPart(stored, (slice(5, 35),), target)], device) == [480]
    assert torch.equal(target.cpu(), stored.values[5:35])
    assert stored.num_reads == 1


@pytest.mark.parametrize("device", DEVICES)
def test_many_tensors_of_a_file_arrive_whole(tmp_path: Path, device: str) -> None:
    torch.manual_seed(0)
    written = {f"{number}": torch.randn(1 + number, 5).to(torch.bfloat16) for number in range(40)}
    save_file(written, tmp_path / "model.safetensors")
    stored = read_safetensors(tmp_path / "model.safetensors", "download it again")
    targets = {name: torch.full(tensor.shape, torch.nan, dtype=tensor.dtype, device=device)
               for name, tensor in written.items()}
    read([WeightPart(tensor, (slice(None),), targets[name]) for name, tensor in stored.items()], device)
    assert all(torch.equal(targets[name].cpu(), tensor) for name, tensor in written.items())


@pytest.mark.parametrize("device", DEVICES)
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, device: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(1000))
    stored = FileTensor(tmp_path / "weights", "w", 0, (300, 4), torch.int8, "download it again")
    with pytest.raises(CheckpointError, match="weights: tensor w is cut off: the file ends early; download it again"):
        read([WeightPart(stored, (slice(None),), torch.empty(300, 4, dtype=torch.int8, device=device))], device)


@pytest.mark.gpu
def test_threads_read_at_the_same_time_and_torch_keeps_its_own() -> None:
    class Meeting(Readable):
        both = threading.Barrier(2, timeout=60)

        def read_into(self, index: tuple[slice, ...], out: Tensor) -> None:
            self.both.wait()
            super().read_into(index, out)

    before = torch.get_num_threads()
    stored = Meeting(torch.randn(8, 16))
    target = torch.zeros(8, 16, device="cuda")
    read([WeightPart(stored, (slice(None),), target)], "cuda")
    assert torch.equal(target.cpu(), stored.values)
    assert len(stored.indices) == 8
    assert torch.get_num_threads() == before
