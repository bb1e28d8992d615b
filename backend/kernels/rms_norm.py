"""RMSNorm in Triton.

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
    size = x.shape[-1]
    num_rows = x.numel() // size
    if num_rows == 0:
        return output
    columns = triton.next_power_of_2(size)
    rows = max(1, TILE_VALUES // columns)
    heads = x.shape[1] if x.dim() == 3 else 1
    _rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, weight, output, num_rows, heads, x.stride(0), x.stride(-2), eps,
        SIZE=size, ROWS=rows, COLUMNS=columns, num_warps=min(16, max(4, columns // 512)))
    return output


@triton.jit(do_not_specialize=["num_rows"])  # one compilation serves every number of tokens
def _rms_norm_kernel(x, weight, output, num_rows, heads, token_stride, head_stride, eps,
                     SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < num_rows)[:, None] & (column < SIZE)[None, :]
    source = (row // heads) * token_stride + (row % heads) * head_stride
    target = row[:, None] * SIZE + column[None, :]
    values = tl.load(x + source[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / SIZE + eps)
    factor = tl.load(weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    tl.store(output + target, (values * scale[:, None] * factor[None, :]).to(output.dtype.element_ty), mask=inside)
