"""Matrix-vector product in CUDA C++ (matvec_cuda.cu): a linear layer of one token on Hopper, as fast as memory is read.

All matmuls of a decode step of Llama-2-7B's shape, chained in a CUDA graph, read their 13.2 GB in 3.07 ms, at 4.3 TB/s
(one H200, bfloat16, 2026-11-21). What each reaches alone: `python -m benchmarks.kernels`. Used by linear.py."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.kernels import cuda_source, shapes
from backend.kernels.capability import num_multiprocessors
from backend.kernels.cuda_source import CudaKernel

SOURCE = Path(__file__).with_suffix(".cu")
LOAD_VALUES = 8  # of 16 bits, in a load of 16 bytes
BLOCK_THREADS = 512  # on a multiprocessor, each with LOADS under way
LOADS = 8
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """How a block reads its rows: `chunks` loads of each of `rows` rows a thread, `blocks` on a multiprocessor."""

    chunks: int
    threads: int
    rows: int
    blocks: int


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether this kernel is made for such a product."""
    size = weight.shape[1]
    return (x.dtype in (torch.float16, torch.bfloat16) and size % LOAD_VALUES == 0
            and size <= 4 * MAX_THREADS * LOAD_VALUES and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
            and cuda_source.is_available(x.device))


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
           residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.linear, for one token: x [1, X]; the result is in `dtype`, x's or float32. Rounds once."""
    shapes.check_linear(x, weight, bias, norm, is_gated, residual)
    assert x.shape[0] == 1 and weight.is_contiguous() and x.is_contiguous(), (x.shape, x.stride(), weight.stride())
    num_outputs, size = weight.shape
    num_results = num_outputs // 2 if is_gated else num_outputs
    layout = _layout(size, num_outputs, is_gated)
    output = torch.empty((1, num_results), dtype=dtype, device=x.device) if residual is None else residual
    norm_weight, eps = (None, 0.0) if norm is None else norm
    kernel = _kernel(size, layout, x.device, x.dtype == torch.float16, norm is not None, bias is not None,
                     residual is not None, is_gated, dtype == torch.float32)
    num_blocks = min(num_outputs // layout.rows, num_multiprocessors(x.device) * layout.blocks)
    kernel.launch(num_blocks, [
        *((0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p) for tensor in (weight, x, norm_weight, bias,
                                                                                     output)),
        (num_outputs, ctypes.c_int), (eps, ctypes.c_float)])
    return output


@functools.cache
def _layout(size: int, num_outputs: int, is_gated: bool) -> Layout:
    """The best of those measured on an H200 for inputs of 4,096 (1 chunk x 8 rows), 11,008 (4 x 4) and 14,336 (2 x 2:
    with 4 x 4 its 448 threads have too few registers); the others by likeness."""
    loads = size // LOAD_VALUES
    if loads <= BLOCK_THREADS:
        chunks, rows = 1, LOADS
    elif loads <= 4 * 352:
        chunks, rows = 4, 4
    else:
        chunks, rows = (2, 2) if loads <= 2 * MAX_THREADS else (4, 1)
    least = 2 if is_gated else 1
    rows = max(rows, least)
    while num_outputs % rows:
        rows //= 2
    threads = -(-loads // chunks // 32) * 32
    return Layout(chunks, threads, rows, max(1, BLOCK_THREADS // threads))


@functools.cache
def _kernel(size: int, layout: Layout, device: torch.device, is_half: bool, has_norm: bool, has_bias: bool,
            has_residual: bool, is_gated: bool, is_float: bool) -> CudaKernel:
    macros = {"SIZE": size, "CHUNKS": layout.chunks, "THREADS": layout.threads, "ROWS": layout.rows,
              "MIN_BLOCKS": layout.blocks, "NORM": has_norm, "BIAS": has_bias, "RESIDUAL": has_residual,
              "GATED": is_gated, "FLOAT_OUTPUT": is_float, "IS_HALF": is_half}
    return cuda_source.load(SOURCE, "matvec", {name: int(value) for name, value in macros.items()}, device,
                            layout.threads)
