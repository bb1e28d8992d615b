"""Matrix-vector product in Triton: a linear layer of one token, bound by reading its weight once.

A program owns one output and reads its row of the weight in a few wide pieces, all of them under way at the same time.
On an H200, in a CUDA graph, bfloat16: 42.4 us for [22016, 4096] where cuBLAS takes 50.8 and reading alone 39.2.
Used by dispatch.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes

TILE_VALUES = 4096  # inputs of a piece
NUM_WARPS = 4


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.linear, for one token: x [1, X]; returns [1, Y]. Sums in float32."""
    shapes.check_matvec(x, weight, bias)
    num_outputs, size = weight.shape
    output = torch.empty((1, num_outputs), dtype=x.dtype, device=x.device)
    _matvec_kernel[(num_outputs,)](
        x, weight, bias, output, SIZE=size, TILE=min(TILE_VALUES, triton.next_power_of_2(size)),
        HAS_BIAS=bias is not None, num_warps=NUM_WARPS)
    return output


@triton.jit
def _matvec_kernel(x, weight, bias, output, SIZE: tl.constexpr, TILE: tl.constexpr, HAS_BIAS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    products = tl.zeros([TILE], tl.float32)
    for start in tl.static_range(0, SIZE, TILE):
        column = start + tl.arange(0, TILE)
        inside = column < SIZE
        values = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        products += tl.load(weight + row * SIZE + column, mask=inside, other=0.0).to(tl.float32) * values
    total = tl.sum(products, axis=0)
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
    tl.store(output + row, total.to(output.dtype.element_ty))
