"""Weight reader: parts of stored tensors into the places on the device that are ready for them, by several threads.

One core copies from the page cache more slowly than the bus to a GPU carries, so each thread reads a part straight into
a pinned buffer, from which it is copied while the thread reads the next into another. Buffers go round through a
queue: the one whose copy began first is taken first, and memory on the host stays at 2 * NUM_THREADS * PART_BYTES,
whatever the model. 13.5 GB out of the page cache into an H200 take 0.4 s. Used by weight_loader.py."""

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
PART_BYTES = 16 << 20  # on an H200, 8 threads: 4 MiB 16 GB/s, 8 MiB 25, 16 MiB 31 to 34, 32 MiB 26
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

    def view_of(self, buffer: Tensor) -> Tensor:
        """The beginning of a buffer [bytes] uint8 as the memory to read into."""
        return buffer[: self.num_bytes].view(self.stored.dtype).view(self.target.shape)

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
    for part in parts:
        if not isinstance(part.stored, ReadableTensor):
            part.target.copy_(part.stored[part.index])
            progress(part.num_bytes)
    is_gpu = device.type == "cuda"
    runs = [run for part in parts if isinstance(part.stored, ReadableTensor)
            for run in part.split(PART_BYTES if is_gpu else CPU_PART_BYTES)]
    if not runs:
        return
    num_threads = min(NUM_THREADS, len(os.sched_getaffinity(0))) if is_gpu else torch.get_num_threads()
    reader = GpuReader(runs, num_threads, device) if is_gpu else CpuReader(runs, num_threads)
    with _one_torch_thread(), ThreadPoolExecutor(num_threads, "weights") as threads:
        for num_bytes in threads.map(reader.read, runs):  # an error cancels the parts that no thread has begun
            progress(num_bytes)
    if is_gpu:
        torch.cuda.synchronize(device)


class GpuReader:
    """Through pinned buffers, twice as many as threads, and copies that only a buffer's next use waits for."""

    def __init__(self, parts: Sequence[WeightPart], num_threads: int, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))
        self.buffers: queue.SimpleQueue[tuple[Tensor, torch.cuda.Event]] = queue.SimpleQueue()
        for _ in range(min(2 * num_threads, len(parts))):
            self.buffers.put((torch.empty(_largest(parts), dtype=torch.uint8, pin_memory=True), torch.cuda.Event()))

    def read(self, part: WeightPart) -> int:
        """Launches the copy; returns the bytes read."""
        buffer, copied = self.buffers.get()
        try:
            copied.synchronize()
            view = part.view_of(buffer)
            part.stored.read_into(part.index, view)
            with torch.cuda.stream(self.stream):
                # A cast is the device's work: from pinned memory straight into another dtype, torch casts on the host.
                source = view if view.dtype == part.target.dtype else view.to(self.device, non_blocking=True)
                part.target.copy_(source, non_blocking=True)
                copied.record(self.stream)
        finally:
            self.buffers.put((buffer, copied))
        return part.num_bytes


class CpuReader:
    """Straight into the target; where that is cast, through buffers that stay in a core's cache."""

    def __init__(self, parts: Sequence[WeightPart], num_threads: int) -> None:
        self.buffers: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(num_threads):
            self.buffers.put(torch.empty(_largest(parts), dtype=torch.uint8))

    def read(self, part: WeightPart) -> int:
        """Returns the bytes read."""
        if part.stored.dtype == part.target.dtype and part.target.is_contiguous():
            part.stored.read_into(part.index, part.target)
            return part.num_bytes
        buffer = self.buffers.get()
        try:
            view = part.view_of(buffer)
            part.stored.read_into(part.index, view)
            part.target.copy_(view)
        finally:
            self.buffers.put(buffer)
        return part.num_bytes


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
    return max(part.num_bytes for part in parts)
