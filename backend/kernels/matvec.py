"""Matrix-vector product in Triton: a linear layer of one token, with its norm, gate and residual addition fused in.

Bound by reading the weight once: a program owns a few outputs and reads their rows in wide pieces, all of them under
way at the same time. The way of devices and sizes for which matvec_cuda.py is not made. Used by linear.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes

TILE_VALUES = 4096  # inputs of a piece
ROWS = 4
NUM_WARPS = 8


def matvec(x: Tensor, weight: Tensor, bias: Tensor | None, *, norm: tuple[Tensor, float] | None, is_gated: bool,
           residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See reference.linear, for one token: x [1, X]; the result is in `dtype`. Sums in float32, rounds once."""
    shapes.check_linear(x, weight, bias, norm, is_gated, residual)
    assert x.shape[0] == 1 and weight.is_contiguous(), (x.shape, weight.stride())
    num_outputs, size = weight.shape
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = torch.empty((1, num_results), dtype=dtype, device=x.device) if residual is None else residual
    norm_weight, eps = (None, 0.0) if norm is None else norm
    _matvec_kernel[(triton.cdiv(num_results, ROWS),)](
        x, weight, bias, norm_weight, output, num_results, eps, SIZE=size,
        TILE=min(TILE_VALUES, triton.next_power_of_2(size)), ROWS=ROWS, IS_GATED=is_gated,
        HAS_NORM=norm is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        num_warps=NUM_WARPS)
    return output


@triton.jit(do_not_specialize=["num_results"])  # 1 would become a constant, which has no .to
def _matvec_kernel(x, weight, bias, norm_weight, output, num_results, eps, SIZE: tl.constexpr, TILE: tl.constexpr,
                   ROWS: tl.constexpr, IS_GATED: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr,
                   HAS_RESIDUAL: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = row < num_results
    rows = weight + row.to(tl.int64)[:, None] * SIZE
    up_rows = rows + num_results.to(tl.int64) * SIZE  # read where IS_GATED
    sums = tl.zeros([ROWS, TILE], tl.float32)
    up_sums = tl.zeros([ROWS, TILE], tl.float32)
    squares = tl.zeros([TILE], tl.float32)
    for start in tl.static_range(0, SIZE, TILE):
        column = start + tl.arange(0, TILE)
        inside = has_row[:, None] & (column < SIZE)[None, :]
        inputs = tl.load(x + column, mask=column < SIZE, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += inputs * inputs
            inputs *= tl.load(norm_weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
        sums += tl.load(rows + column[None, :], mask=inside, other=0.0).to(tl.float32) * inputs[None, :]
        if IS_GATED:
            up_sums += tl.load(up_rows + column[None, :], mask=inside, other=0.0).to(tl.float32) * inputs[None, :]

    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / SIZE + eps)
    result = tl.sum(sums, axis=1) * scale
    if HAS_BIAS:
        result += tl.load(bias + row, mask=has_row, other=0.0).to(tl.float32)
    if IS_GATED:
        up = tl.sum(up_sums, axis=1) * scale
        if HAS_BIAS:
            up += tl.load(bias + num_results + row, mask=has_row, other=0.0).to(tl.float32)
        result = result * tl.sigmoid(result) * up
    if HAS_RESIDUAL:
        result += tl.load(output + row, mask=has_row, other=0.0).to(tl.float32)
    tl.store(output + row, result.to(output.dtype.element_ty), mask=has_row)
