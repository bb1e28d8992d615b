"""Weight reader: parts of stored tensors into the places on the device that are ready for them, as fast as they come.

To a GPU, several threads each read a part straight into a pinned buffer, from which it is copied while the thread reads
the next one into another: reading from the page cache takes one core's time, which is less than the bus can carry. A
buffer goes round through a queue, so that the one whose copy began first is taken first, and memory on the host stays
at NUM_THREADS * 2 * PART_BYTES, whatever the model. Used by weight_loader.py."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.model_source import ReadableTensor, StoredTensor

NUM_THREADS = 8
PART_BYTES = 16 << 20
CPU_PART_BYTES = 2 << 20  # small enough that a cast finds what was read in the core's cache

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class WeightPart:
    """stored[index] is to be in `target`, cast to its dtype."""

    stored: StoredTensor
    index: tuple[slice, ...]
    target: Tensor

    @property
    def num_bytes(self) -> int:
        """As stored; as kept, where the source does not say."""
        dtype = self.stored.dtype if isinstance(self.stored, ReadableTensor) else self.target.dtype
        return self.target.numel() * dtype.itemsize

    def split(self, num_bytes: int) -> Iterator[WeightPart]:
        """Runs of rows of at most so many bytes, or of one row."""
        num_rows = self.target.shape[0]
        step = max(1, num_bytes * num_rows // max(1, self.num_bytes))
        start, stop, _ = self.index[0].indices(self.stored.shape[0])
        for first in range(start, stop, step):
            rows = slice(first, min(first + step, stop))
            yield WeightPart(self.stored, (rows, *self.index[1:]), self.target[rows.start - start : rows.stop - start])


def read_parts(parts: Sequence[WeightPart], device: torch.device, progress: Progress) -> None:
    """Fills every target on `device`; all are filled when it returns. `progress` is told the bytes of each part.

    Raises CheckpointError, from reading."""
    readable = [part for part in parts if isinstance(part.stored, ReadableTensor)]
    for part in parts:
        if not isinstance(part.stored, ReadableTensor):
            part.target.copy_(part.stored[part.index])
            progress(part.num_bytes)
    if device.type == "cuda":
        _read_to_gpu([few for part in readable for few in part.split(PART_BYTES)], device, progress)
    else:
        _read_on_cpu([few for part in readable for few in part.split(CPU_PART_BYTES)], progress)


def _read_on_cpu(parts: Sequence[WeightPart], progress: Progress) -> None:
    buffer = torch.empty(_largest(parts), dtype=torch.uint8)
    for part in parts:
        if part.target.dtype == part.stored.dtype and part.target.is_contiguous():
            part.stored.read_into(part.index, part.target)
        else:
            view = _view(buffer, part)
            part.stored.read_into(part.index, view)
            part.target.copy_(view)
        progress(part.num_bytes)


def _read_to_gpu(parts: Sequence[WeightPart], device: torch.device, progress: Progress) -> None:
    num_threads = max(1, min(NUM_THREADS, len(os.sched_getaffinity(0)), len(parts)))
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    buffers: queue.SimpleQueue[tuple[Tensor, torch.cuda.Event]] = queue.SimpleQueue()
    for _ in range(2 * num_threads):
        buffers.put((torch.empty(_largest(parts), dtype=torch.uint8, pin_memory=True), torch.cuda.Event()))

    def read(part: WeightPart) -> int:
        buffer, copied = buffers.get()
        try:
            copied.synchronize()
            view = _view(buffer, part)
            part.stored.read_into(part.index, view)
            with torch.cuda.stream(stream):
                # A cast is the device's work: from pinned memory straight into another dtype, torch casts on the host.
                source = view if part.stored.dtype == part.target.dtype else view.to(device, non_blocking=True)
                part.target.copy_(source, non_blocking=True)
                copied.record(stream)
        finally:
            buffers.put((buffer, copied))
        return part.num_bytes

    with _one_torch_thread(), ThreadPoolExecutor(num_threads, "weights") as threads:
        for num_bytes in threads.map(read, parts):  # an error cancels the parts that no thread has begun
            progress(num_bytes)
    stream.synchronize()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """What a source computes while it is read (a check, a cast) stays on the thread that reads: each of our threads
    would otherwise start as many of OpenMP's as there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _largest(parts: Sequence[WeightPart]) -> int:
    return max((part.num_bytes for part in parts), default=0)


def _view(buffer: Tensor, part: WeightPart) -> Tensor:
    return buffer[: part.num_bytes].view(part.stored.dtype).view(part.target.shape)
