"""Matrix product with four-bit weights in CUDA C++ (w4_skinny.cu): a linear layer of 1 to 16 tokens on Hopper.

The four linear layers of a decoder layer of Llama-2-7B's shape, 107 MB in groups of 128, chained in a CUDA graph of 32
layers, take 36 us for one token (3.0 TB/s) and 51 us for eight (bfloat16, one H200, 2026-11-21). What each reaches
alone: `python -m benchmarks.kernels --only linear_w4`. Used by w4_linear.py."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.kernels import cuda_source
from backend.kernels.capability import is_hopper, num_multiprocessors
from backend.kernels.cuda_source import CudaKernel
from backend.kernels.w4_weight import PIECE, STRIP, W4Weight, piece_bytes

SOURCE = Path(__file__).with_suffix(".cu")
TOKENS = (1, 8, 16)  # that a kernel is compiled for
MAX_TOKENS = TOKENS[-1]
PARTS = 8  # of the inputs
WARPS = 8
SHARED_BYTES = 227 * 1024
# With this much a multiprocessor holds two blocks: one that multiplies, and one of the next kernel that reads ahead.
# With room for three, two could be of the same kernel, and take twice as long as the others.
TWO_BLOCKS_BYTES = 76 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """The inputs are divided over `cluster` blocks and PARTS / cluster warps of each; a warp has `stages` copies under
    way, of `unit` pieces of two strips each."""

    cluster: int
    unit: int
    stages: int


def fits(x: Tensor, weight: W4Weight, is_gated: bool) -> bool:
    """Whether this kernel is made for such a product."""
    num_tokens, size = x.shape
    return (0 < num_tokens <= MAX_TOKENS and x.dtype in (torch.float16, torch.bfloat16) and x.is_contiguous()
            and x.data_ptr() % 16 == 0 and size % 8 == 0 and size > (PARTS - 1) * PIECE
            and weight.out_features % (2 * STRIP if is_gated else STRIP) == 0 and runs_on(x.device)
            and _layout(weight, _tokens(num_tokens), x.device) is not None)


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether this kernel runs there: clusters and 227 KiB of shared memory a block are Hopper's."""
    return cuda_source.is_available(device) and is_hopper(device)


def w4_skinny(x: Tensor, weight: W4Weight, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
              residual: Tensor | None) -> Tensor:
    """See reference.linear_w4, for products that fit. With a norm, x times the norm's weight is rounded to x's dtype;
    else only the result is rounded."""
    layout = _layout(weight, _tokens(x.shape[0]), x.device)
    assert layout is not None, (x.shape, weight.out_features)
    return launch(layout, x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)


def launch(layout: Layout, x: Tensor, weight: W4Weight, bias: Tensor | None, *, norm: tuple[Tensor, float] | None,
           is_gated: bool, residual: Tensor | None) -> Tensor:
    """As w4_skinny, laid out in this way."""
    num_tokens, num_outputs = x.shape[0], weight.out_features
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = torch.empty((num_tokens, num_results), dtype=x.dtype, device=x.device) if residual is None else residual
    assert output.is_contiguous(), output.stride()
    norm_weight, eps = (None, 0.0) if norm is None else norm
    kernel, num_blocks = _kernel(layout, weight.in_features, num_outputs, weight.group_size, _tokens(num_tokens),
                                 x.device, (("NORM", norm is not None), ("BIAS", bias is not None),
                                            ("RESIDUAL", residual is not None), ("GATED", is_gated),
                                            ("IS_HALF", x.dtype == torch.float16)))
    kernel.launch(num_blocks, [
        *((0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p) for tensor in (weight.packed, x, norm_weight,
                                                                                     bias, output)),
        (num_tokens, ctypes.c_int), (eps, ctypes.c_float)])
    return output


def _tokens(num_tokens: int) -> int:
    return next(tokens for tokens in TOKENS if num_tokens <= tokens)


def _layout(weight: W4Weight, tokens: int, device: torch.device) -> Layout | None:
    return _best_layout(weight.in_features, weight.out_features, weight.group_size, tokens, device)


@functools.cache
def _best_layout(size: int, num_outputs: int, group_size: int, tokens: int, device: torch.device) -> Layout | None:
    """The best of those measured on an H200, by what they have in common; None where x does not fit, or, beyond eight
    tokens, would leave no room for copies of two pieces."""
    layouts = [Layout(cluster, 2, 2) for cluster in ((2,) if tokens > 8 else (2, 8))]
    if tokens == 1:  # pairs of blocks are as fast alone, but b of m7 took 2.20 ms with them, 1.75 before them
        layouts = [Layout(1, 2, 3), Layout(1, 2, 2), *layouts]
    for layout in layouts:
        if shared_bytes(layout, size, num_outputs, group_size, tokens, device) <= SHARED_BYTES:
            return layout
    return None


def shared_bytes(layout: Layout, size: int, num_outputs: int, group_size: int, tokens: int,
                 device: torch.device) -> int:
    """The size of `Shared` in the source."""
    num_clusters = _num_clusters(layout, num_outputs, device)
    pieces = _count(_count(size, PIECE), layout.cluster)
    pairs = _count(_count(num_outputs, 2 * STRIP), num_clusters)
    ring = WARPS * layout.stages * 2 * layout.unit * piece_bytes(group_size)
    x = pieces * (4 * _count(tokens, 8) * (4 if tokens == 1 else 32) * 16 + PIECE // group_size * tokens * 4)
    sums = PARTS // layout.cluster * pairs * 8 * tokens * 16
    if layout.cluster > 1:
        sums += layout.cluster * _count(pairs, layout.cluster) * 8 * tokens * 16
    sums += 4 * (2 * WARPS + layout.cluster * tokens + tokens)
    return max(TWO_BLOCKS_BYTES, _count(ring + x + sums + 8 * WARPS * layout.stages, 16) * 16)


@functools.cache
def _num_clusters(layout: Layout, num_outputs: int, device: torch.device) -> int:
    """That have work: one block a multiprocessor, and not more clusters of four or eight than sixteen multiprocessors,
    the fewest that share a network, can hold together."""
    multiprocessors = num_multiprocessors(device)
    if layout.cluster > 2:
        multiprocessors -= multiprocessors % 16
    return min(multiprocessors // layout.cluster, _count(num_outputs, 2 * STRIP))


@functools.cache
def _kernel(layout: Layout, size: int, num_outputs: int, group_size: int, tokens: int, device: torch.device,
            flags: tuple[tuple[str, bool], ...]) -> tuple[CudaKernel, int]:
    """The kernel, and its number of blocks."""
    _compile_all(size, num_outputs, group_size, device, flags)
    num_clusters = _num_clusters(layout, num_outputs, device)
    kernel = cuda_source.load(
        SOURCE, "w4_skinny", _macros(layout, size, num_outputs, group_size, tokens, device, flags), device, 32 * WARPS,
        shared_bytes(layout, size, num_outputs, group_size, tokens, device))
    return kernel, layout.cluster * max(num_clusters, num_multiprocessors(device) // layout.cluster)


@functools.cache
def _compile_all(size: int, num_outputs: int, group_size: int, device: torch.device,
                 flags: tuple[tuple[str, bool], ...]) -> None:
    """For each number of tokens: a server meets them all at its start, and compiles them side by side."""
    layouts = {tokens: _best_layout(size, num_outputs, group_size, tokens, device) for tokens in TOKENS}
    cuda_source.compile_together(SOURCE, [_macros(layout, size, num_outputs, group_size, tokens, device, flags)
                                          for tokens, layout in layouts.items() if layout], device)


def _macros(layout: Layout, size: int, num_outputs: int, group_size: int, tokens: int, device: torch.device,
            flags: tuple[tuple[str, bool], ...]) -> dict[str, int]:
    return {"SIZE": size, "OUTPUTS": num_outputs, "GROUP": group_size, "TOKENS": tokens, "CLUSTER": layout.cluster,
            "NUM_CLUSTERS": _num_clusters(layout, num_outputs, device), "UNIT": layout.unit, "STAGES": layout.stages,
            **{name: int(value) for name, value in flags}}


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
