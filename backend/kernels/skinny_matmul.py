"""Matrix product in CUDA C++ (skinny_matmul.cu): a linear layer of few tokens on Hopper, where cuBLAS leaves bandwidth.

The four linear layers of a decoder layer, with norms, gate and residual additions, in bfloat16, us a layer (one H200,
16 layers chained in a CUDA graph, 2026-11-21), with cuBLAS and our other kernels -> with this one:

    tokens    hidden 4,096, intermediate 11,008 (405 MB)    8 KV heads, intermediate 14,336 (436 MB)
         2                119.9 ->  95.8                              124.6 -> 104.0
        16                123.2 -> 100.2                              127.3 -> 108.5
        32                123.3 -> 111.5                              130.5 -> 120.8

With 64 tokens x takes too much of the shared memory's bandwidth, and cuBLAS is faster. Used by linear.py."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.kernels import cuda_source
from backend.kernels.capability import is_hopper
from backend.kernels.cuda_source import CudaKernel

SOURCE = Path(__file__).with_suffix(".cu")
CHUNK = 32  # inputs of a row: 64 bytes
STRIP = 16  # rows of the weight
TOKEN_TILE = 16  # tokens
WARPS = 8
CLUSTER = 8  # blocks, the most that every Hopper GPU can run together
MAX_WARP_CHUNKS = 11  # of a row: with more, a tile takes so long that the last ones leave multiprocessors idle
SHARED_BYTES = 227 * 1024
MAX_STAGES = 16
MIN_STAGES = 8  # with fewer, too little of the weight is under way
MAX_TOKENS = 32
TWO_TILES_SIZES = range(2048, 12288 + 1)  # inputs, of which more than 16 tokens are not cuBLAS's


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tile of the weight is divided: its inputs over the blocks of a cluster and `k_groups` warps of each, its
    rows over `row_groups` warps of `strips` strips. Each warp has up to `stages` - 1 chunks of them under way."""

    k_groups: int
    strips: int
    stages: int

    @property
    def row_groups(self) -> int:
        return WARPS // self.k_groups

    @property
    def tile_rows(self) -> int:
        return STRIP * self.strips * self.row_groups


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether this kernel is made for such a product, and faster than cuBLAS."""
    num_tokens, (num_outputs, size) = x.shape[0], weight.shape
    return (1 < num_tokens <= MAX_TOKENS and x.dtype in (torch.float16, torch.bfloat16)
            and size % CHUNK == 0 and num_outputs % 4 == 0 and x.is_contiguous() and weight.is_contiguous()
            and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
            and _layout(size, num_tokens) is not None and runs_on(x.device))


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether this kernel runs there: clusters and 227 KiB of shared memory a block are Hopper's."""
    return cuda_source.is_available(device) and is_hopper(device)


def fuses_norm(x: Tensor) -> bool:
    """Whether the norm can be left to this kernel, which multiplies x with the norm's weight before it divides by the
    root mean square: in float16 that could overflow."""
    return x.dtype == torch.bfloat16


def skinny_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
                  residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.linear, for products that fit; the result is in `dtype`, x's or float32. With a norm, x times the
    norm's weight is rounded to x's dtype; else only the result is rounded."""
    (num_tokens, size), num_outputs = x.shape, weight.shape[0]
    layout = _layout(size, num_tokens)
    assert layout is not None and (norm is None or fuses_norm(x)), (x.shape, x.dtype)
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = torch.empty((num_tokens, num_results), dtype=dtype, device=x.device) if residual is None else residual
    assert output.is_contiguous() and (residual is None or residual.dtype == x.dtype), (output.stride(), output.dtype)
    norm_weight, eps = (None, 0.0) if norm is None else norm
    kernel, max_clusters = _kernel(size, layout, _count(num_tokens, TOKEN_TILE), x.device, x.dtype == torch.float16,
                                   norm is not None, bias is not None, residual is not None, is_gated,
                                   output.dtype == torch.float32)
    kernel.launch(CLUSTER * min(max_clusters, _count(num_outputs, layout.tile_rows)), [
        *((0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p) for tensor in (weight, x, norm_weight, bias,
                                                                                     output)),
        (num_outputs, ctypes.c_int), (num_tokens, ctypes.c_int), (eps, ctypes.c_float)])
    return output


@functools.cache
def _layout(size: int, num_tokens: int) -> Layout | None:
    """The best of those measured on an H200 for inputs of 4,096, 11,008 and 14,336, by what they have in common; None
    where cuBLAS was faster, or there are too few inputs for every warp to have one chunk."""
    if num_tokens > TOKEN_TILE and size not in TWO_TILES_SIZES:
        return None
    chunks = size // CHUNK
    k_groups = 1
    while k_groups < WARPS and chunks > MAX_WARP_CHUNKS * CLUSTER * k_groups:
        k_groups *= 2
    if chunks < CLUSTER * k_groups:
        return None
    for strips in (2, 1):
        for stages in range(MAX_STAGES, MIN_STAGES - 1, -1):
            layout = Layout(k_groups, strips, stages)
            if _shared_bytes(chunks, layout, _count(num_tokens, TOKEN_TILE)) <= SHARED_BYTES:
                return layout
    return None


def _shared_bytes(chunks: int, layout: Layout, token_tiles: int) -> int:
    """The size of `Shared` in the source."""
    sums = 4 * TOKEN_TILE * token_tiles * layout.tile_rows
    squares = 4 * TOKEN_TILE * token_tiles * (WARPS + CLUSTER)
    return (WARPS * layout.stages * layout.strips * 1024 + _count(chunks, CLUSTER) * token_tiles * 1024
            + (layout.k_groups + 2) * sums + squares + 3 * 8)


@functools.cache
def _kernel(size: int, layout: Layout, token_tiles: int, device: torch.device, is_half: bool, has_norm: bool,
            has_bias: bool, has_residual: bool, is_gated: bool, is_float: bool) -> tuple[CudaKernel, int]:
    """The kernel, and how many of its clusters run at the same time."""
    macros = {"SIZE": size, "CLUSTER": CLUSTER, "K_GROUPS": layout.k_groups, "ROW_GROUPS": layout.row_groups,
              "STRIPS": layout.strips, "STAGES": layout.stages, "TOKEN_TILES": token_tiles, "NORM": has_norm,
              "BIAS": has_bias, "RESIDUAL": has_residual, "GATED": is_gated, "FLOAT_OUTPUT": is_float,
              "IS_HALF": is_half}
    kernel = cuda_source.load(SOURCE, "skinny_matmul", {name: int(value) for name, value in macros.items()}, device,
                              32 * WARPS, _shared_bytes(size // CHUNK, layout, token_tiles))
    return kernel, kernel.max_clusters(CLUSTER)


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
