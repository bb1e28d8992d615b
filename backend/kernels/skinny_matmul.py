"""Matrix product in CUDA C++ (skinny_matmul.cu): a linear layer of few tokens on Hopper, where cuBLAS leaves bandwidth.

FIGURES
Used by linear.py."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.kernels import cuda_source, shapes
from backend.kernels.cuda_source import CudaKernel

SOURCE = Path(__file__).with_suffix(".cu")
CHUNK = 32  # inputs, of a row: 64 bytes
STRIP = 16  # rows of the weight
TOKEN_TILE = 16  # tokens
MAX_TOKENS = 32
MAX_SHARED_BYTES = 227 * 1024
MIN_STAGES, MAX_STAGES = 3, 16


@dataclass(frozen=True, slots=True)
class Layout:
    """How a cluster of blocks divides a tile: its inputs over `cluster` blocks of `k_groups` warps, its strips over
    `row_groups` warps; each warp keeps `stages` - 1 chunks of its strip on the way."""

    cluster: int
    k_groups: int
    row_groups: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.k_groups * self.row_groups


def fits(x: Tensor, weight: Tensor, norm: tuple[Tensor, float] | None) -> bool:
    """Whether this kernel is made for such a product, and faster than cuBLAS."""
    num_tokens, (num_outputs, size) = x.shape[0], weight.shape
    return (x.dtype in (torch.float16, torch.bfloat16) and 1 < num_tokens <= MAX_TOKENS
            # The product of x and the norm's weight, before it is divided by its root mean square, may exceed float16.
            and (x.dtype == torch.bfloat16 or norm is None)
            and num_outputs % 4 == 0 and size % CHUNK == 0 and x.is_contiguous() and weight.is_contiguous()
            and cuda_source.is_available(x.device) and layout(size, num_outputs, num_tokens) is not None)


def skinny_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
                  residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.linear, for products that fit; the result is in `dtype`, x's or float32."""
    shapes.check_linear(x, weight, bias, norm, is_gated, residual)
    (num_tokens, size), num_outputs = x.shape, weight.shape[0]
    chosen = layout(size, num_outputs, num_tokens)
    assert chosen is not None and x.is_contiguous() and weight.is_contiguous()
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = torch.empty((num_tokens, num_results), dtype=dtype, device=x.device) if residual is None else residual
    norm_weight, eps = (None, 0.0) if norm is None else norm
    kernel, max_clusters = _kernel(size, chosen, _num_tiles(num_tokens, TOKEN_TILE), x.device, x.dtype == torch.float16,
                                   norm is not None, bias is not None, residual is not None, is_gated,
                                   output.dtype == torch.float32)
    num_clusters = min(max_clusters, _num_tiles(num_outputs, STRIP * chosen.row_groups))
    kernel.launch(num_clusters * chosen.cluster, [
        *((0 if tensor is None else tensor.data_ptr(), ctypes.c_void_p) for tensor in (weight, x, norm_weight, bias,
                                                                                     output)),
        (num_outputs, ctypes.c_int), (num_tokens, ctypes.c_int), (eps, ctypes.c_float)])
    return output
