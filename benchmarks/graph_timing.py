"""Graph timing: how long kernels take on a GPU, as CUDA graphs, so that launching them costs the host nothing.

Used by kernels.py and sampling.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

REPLAYS = 9
L2_BYTES = 64 * 2**20  # an H200 has 50 MiB
MAX_COPIES = 32


def num_copies(num_bytes: float) -> int:
    """How many sets of buffers a kernel that moves num_bytes needs, so that none of them is still in the L2 cache when
    its turn comes again. What is so small that MAX_COPIES fit together stays there, as it does in a step."""
    return max(2, min(MAX_COPIES, int(4 * L2_BYTES / num_bytes) + 1))


def seconds_each(launches: Sequence[Callable[[], object]]) -> float:
    """Seconds per launch: all of them in one graph, one after the other, median over replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches[0]()  # compiles what is compiled at first use, which a capture must not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / len(launches))
    return statistics.median(times[1:])
