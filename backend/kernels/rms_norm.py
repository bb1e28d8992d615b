"""RMSNorm in Triton, with and without adding to the residual stream first.

A program owns whole rows: several short ones (heads), or one long one (hidden states). Used by dispatch.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes

TILE_VALUES = 1024  # short rows are normalised this many values at a time


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm. x [T, X] or [T, H, D] with any strides but the last; returns a contiguous tensor."""
    shapes.check_norm(x, weight)
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, output, None, eps)
    return output


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See reference.add_rms_norm. The sum is rounded to x's dtype before it is normalised."""
    shapes.check_residual(x, residual)
    shapes.check_norm(x, weight)
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, output, total, eps)
    return output, total


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, output: Tensor, total: Tensor | None,
            eps: float) -> None:
    size = x.shape[-1]
    num_rows = x.numel() // size
    if num_rows == 0:
        return
    columns = triton.next_power_of_2(size)
    rows = max(1, TILE_VALUES // columns)
    heads = x.shape[1] if x.dim() == 3 else 1
    _rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, residual, weight, output, total, num_rows, heads, x.stride(0), x.stride(-2),
        residual.stride(0) if residual is not None else 0, eps,
        SIZE=size, ROWS=rows, COLUMNS=columns, HAS_RESIDUAL=residual is not None,
        num_warps=min(16, max(4, columns // 512)))


@triton.jit(do_not_specialize=["num_rows"])  # one compilation serves every number of tokens
def _rms_norm_kernel(x, residual, weight, output, total, num_rows, heads, token_stride, head_stride, residual_stride,
                     eps, SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_RESIDUAL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    source = (row // heads) * token_stride + (row % heads) * head_stride
    target = row[:, None] * SIZE + column[None, :]
    values = tl.load(x + source[:, None] + column[None, :], mask=inside, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(total + target, values, mask=inside)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / SIZE + eps)
    factor = tl.load(weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    tl.store(output + target, (values * scale[:, None] * factor[None, :]).to(output.dtype.element_ty), mask=inside)
