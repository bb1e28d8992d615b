"""Linear layers with four-bit weights on a GPU: which kernel multiplies, decided by the number of tokens.

On Hopper up to 16 tokens go through one kernel of ours, which fuses norm, gate and residual addition, and more through
another, which makes sixteen-bit weights in registers, but for many that are added to a residual. Elsewhere few go
through a Triton kernel. Otherwise the weight becomes a dense matrix, a part at a time, that cuBLAS multiplies. Used by
dispatch.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from backend.kernels import shapes, w4_skinny, w4_stream_k, w4_triton
from backend.kernels.activation import silu_and_mul
from backend.kernels.rms_norm import rms_norm
from backend.kernels.w4_weight import W4Weight

MAX_ADDED_TOKENS = 2048  # to a residual: with more cuBLAS, which adds too, makes up for a dense matrix
MAX_TRITON_TOKENS = 64
SCRATCH_BYTES = 64 << 20  # of a dense part: a memory plan has this much more
PART_ROWS = 128  # a part has a multiple of them: cuBLAS is many times slower where its results begin at odd places


def linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
              is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear_w4."""
    shapes.check_linear_w4(x, weight, bias, norm, is_gated, residual)
    if w4_skinny.fits(x, weight, is_gated, norm is not None):
        return w4_skinny.w4_skinny(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)
    if norm is not None:
        x = rms_norm(x, *norm)
    if (residual is None or x.shape[0] <= MAX_ADDED_TOKENS) and w4_stream_k.fits(x, weight, is_gated, residual):
        return w4_stream_k.w4_stream_k(x, weight, bias, is_gated=is_gated, residual=residual)
    if x.shape[0] <= MAX_TRITON_TOKENS:
        y = w4_triton.matmul(x, weight)
    elif residual is not None and not is_gated:
        for rows, dense in _dense_parts(weight, x.dtype):
            residual[:, rows].addmm_(x, dense.t())
        return residual if bias is None else residual.add_(bias)
    else:
        y = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
        for rows, dense in _dense_parts(weight, x.dtype):
            torch.mm(x, dense.t(), out=y[:, rows])
    if bias is not None:
        y += bias
    if is_gated:
        y = silu_and_mul(y)
    return y if residual is None else residual.add_(y)


def _dense_parts(weight: W4Weight, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight, and the matrix [rows, X] that they are, which the next part takes the place of.

    For cuBLAS alone: our own kernels would read it before it is there, as they take weights for constants."""
    num_outputs, size = weight.out_features, weight.in_features
    most_rows = max(1, SCRATCH_BYTES // (dtype.itemsize * size))
    rows = -(-num_outputs // -(-num_outputs // most_rows))  # parts of equal size
    rows = min(most_rows, -(-rows // PART_ROWS) * PART_ROWS)
    scratch = torch.empty((min(rows, num_outputs), size), dtype=dtype, device=weight.packed.device)
    for first in range(0, num_outputs, rows):
        dense = scratch[:num_outputs - first]
        w4_triton.dequantise(weight, first, dense)
        yield slice(first, first + rows), dense
