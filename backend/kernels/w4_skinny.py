"""Matrix product with four-bit weights in CUDA C++ (w4_skinny.cu): a linear layer of 1 to 16 tokens on Hopper.

The four linear layers of a decoder layer of Llama-2-7B's shape, 107 MB in groups of 128, chained in a CUDA graph of 32
layers, take 35 us for one token (3.0 TB/s), 44 for eight and 53 for sixteen (float16, one H200, 2026-11-21). What each
reaches alone: `python -m benchmarks.kernels --only linear_w4`. Used by w4_linear.py."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, replace
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
MIN_PIECES = 8  # of a row: as many as a cluster may have blocks
WARPS = 8
SHARED_BYTES = 227 * 1024
# Where a multiprocessor has room for two blocks of one kernel, it gets two when the kernel before ends, and another
# multiprocessor none: they take twice as long. So a block takes more than half of the memory. For one token, where
# reading ahead while the kernel before computes is worth most, layers that add to the residual take ADDED_BYTES and
# their neighbours what is left, so that a block of each fits, but not two of one.
MULTIPROCESSOR_BYTES = 228 * 1024
BLOCK_BYTES = 1024  # that each block takes beside its own
HALF_BYTES = MULTIPROCESSOR_BYTES // 2
ADDED_BYTES = 130 * 1024
BESIDE_BYTES = MULTIPROCESSOR_BYTES - ADDED_BYTES - 2 * BLOCK_BYTES
MANY_INPUTS = 8192  # more are divided by larger clusters


@dataclass(frozen=True, slots=True)
class Product:
    """What a kernel is compiled for: the weight's size, at most so many tokens, and what is fused in."""

    size: int
    num_outputs: int
    group_size: int
    tokens: int
    is_half: bool
    has_norm: bool
    has_bias: bool
    is_gated: bool
    is_added: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The inputs are divided over `cluster` blocks; a warp has `stages` copies under way, of `unit` pieces of two
    strips each. A block takes `least_bytes` of shared memory, or more."""

    cluster: int
    unit: int
    stages: int
    least_bytes: int = 0


def fits(x: Tensor, weight: W4Weight, is_gated: bool, has_norm: bool) -> bool:
    """Whether this kernel is made for such a product."""
    num_tokens, size = x.shape
    return (0 < num_tokens <= MAX_TOKENS and x.dtype in (torch.float16, torch.bfloat16) and x.is_contiguous()
            and x.data_ptr() % 16 == 0 and size % 8 == 0 and size > (MIN_PIECES - 1) * PIECE
            and weight.out_features % (2 * STRIP if is_gated else STRIP) == 0 and runs_on(x.device)
            and best_layout(_product(x, weight, has_norm=has_norm, has_bias=False, is_gated=is_gated, is_added=False),
                            x.device) is not None)


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether this kernel runs there: clusters and 227 KiB of shared memory a block are Hopper's."""
    return cuda_source.is_available(device) and is_hopper(device)


def w4_skinny(x: Tensor, weight: W4Weight, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
              residual: Tensor | None) -> Tensor:
    """See reference.linear_w4, for products that fit. With a norm, x times the norm's weight is rounded to x's dtype;
    else only the result is rounded."""
    return launch(None, x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)


def launch(layout: Layout | None, x: Tensor, weight: W4Weight, bias: Tensor | None, *,
           norm: tuple[Tensor, float] | None, is_gated: bool, residual: Tensor | None) -> Tensor:
    """As w4_skinny, laid out in this way, or the best."""
    product = _product(x, weight, has_norm=norm is not None, has_bias=bias is not None, is_gated=is_gated,
                       is_added=residual is not None)
    kernel, num_blocks = _kernel(product, layout, x.device)
    num_results = weight.out_features // 2 if is_gated else weight.out_features
    output = torch.empty((len(x), num_results), dtype=x.dtype, device=x.device) if residual is None else residual
    assert output.is_contiguous(), output.stride()
    norm_weight, eps = (None, 0.0) if norm is None else norm
    kernel.launch(num_blocks, [
        *((0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p) for tensor in (weight.packed, x, norm_weight,
                                                                                     bias, output)),
        (len(x), ctypes.c_int), (eps, ctypes.c_float)])
    return output


def _product(x: Tensor, weight: W4Weight, *, has_norm: bool, has_bias: bool, is_gated: bool, is_added: bool) -> Product:
    tokens = next(tokens for tokens in TOKENS if len(x) <= tokens)
    return Product(weight.in_features, weight.out_features, weight.group_size, tokens, x.dtype == torch.float16,
                   has_norm, has_bias, is_gated, is_added)


@functools.cache
def best_layout(product: Product, device: torch.device) -> Layout | None:
    """The best of those measured on an H200, by what they have in common; None where x does not fit."""
    layouts = [Layout(cluster, 2, 2, HALF_BYTES) for cluster in ((2, 4, 8) if product.size <= MANY_INPUTS else (8,))]
    if product.tokens == 1:
        small = Layout(2, 2, 2)
        if product.is_added:
            layouts.insert(0, Layout(2, 2, 3, ADDED_BYTES))
        elif shared_bytes(small, product, device) <= BESIDE_BYTES:
            layouts.insert(0, small)
    for layout in layouts:
        if shared_bytes(layout, product, device) <= SHARED_BYTES:
            return layout
    return None


def shared_bytes(layout: Layout, product: Product, device: torch.device) -> int:
    """The size of `Shared` in the source, or the layout's least."""
    tokens = product.tokens
    num_clusters = _num_clusters(layout, product, device)
    pieces = _count(_count(product.size, PIECE), layout.cluster)
    pairs = _count(_count(product.num_outputs, 2 * STRIP), num_clusters)
    ring = WARPS * layout.stages * 2 * layout.unit * piece_bytes(product.group_size)
    x = pieces * (4 * _count(tokens, 8) * (4 if tokens == 1 else 32) * 16 + PIECE // product.group_size * tokens * 4)
    norm = pieces * PIECE * 2 if product.has_norm else 0
    sums = (pairs + WARPS - 1) * 8 * tokens * 16 + 16 * _count(pairs, 8)
    if layout.cluster > 1:
        sums += layout.cluster * _count(pairs, layout.cluster) * 8 * tokens * 16
    sums += 4 * (2 * WARPS + layout.cluster * tokens + tokens)
    return max(layout.least_bytes, _count(ring + x + norm + sums + 8 * (WARPS * layout.stages + 1), 16) * 16)


def _num_clusters(layout: Layout, product: Product, device: torch.device) -> int:
    """That have work: one block a multiprocessor."""
    return min(_most_clusters(layout.cluster, device), _count(product.num_outputs, 2 * STRIP))


def _most_clusters(cluster: int, device: torch.device) -> int:
    """That run at the same time, with one block a multiprocessor: some multiprocessors have no such neighbours."""
    if cluster <= 2:
        return num_multiprocessors(device) // cluster
    return cuda_source.max_clusters(cluster, 32 * WARPS, SHARED_BYTES, device)


@functools.cache
def _kernel(product: Product, layout: Layout | None, device: torch.device) -> tuple[CudaKernel, int]:
    """The kernel, and its number of blocks."""
    if layout is None:
        _compile_all(product, device)
        layout = best_layout(product, device)
        assert layout is not None, product
    kernel = cuda_source.load(SOURCE, "w4_skinny", macros(layout, product, device), device, 32 * WARPS,
                              shared_bytes(layout, product, device))
    return kernel, layout.cluster * _most_clusters(layout.cluster, device)


@functools.cache
def _compile_all(product: Product, device: torch.device) -> None:
    """For each number of tokens: a server meets them all at its start, and compiles them side by side."""
    products = [replace(product, tokens=tokens) for tokens in TOKENS]
    layouts = [(best_layout(each, device), each) for each in products]
    cuda_source.compile_together(SOURCE, [macros(layout, each, device) for layout, each in layouts if layout], device)


def macros(layout: Layout, product: Product, device: torch.device) -> dict[str, int]:
    """What the source wants to be defined."""
    return {"SIZE": product.size, "OUTPUTS": product.num_outputs, "GROUP": product.group_size, "TOKENS": product.tokens,
            "CLUSTER": layout.cluster, "NUM_CLUSTERS": _num_clusters(layout, product, device), "UNIT": layout.unit,
            "STAGES": layout.stages, "NORM": int(product.has_norm), "BIAS": int(product.has_bias),
            "RESIDUAL": int(product.is_added), "GATED": int(product.is_gated), "IS_HALF": int(product.is_half)}


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
