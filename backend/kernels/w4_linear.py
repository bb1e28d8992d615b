"""Linear layers with four-bit weights on a GPU: which kernel multiplies, decided by the number of tokens.

On Hopper up to 16 tokens go through one kernel of ours, which fuses norm, gate and residual addition, and more through
another, which makes sixteen-bit weights in registers. Elsewhere few go through a Triton kernel, and for many the weight
becomes a dense matrix, a part at a time, that cuBLAS multiplies. Used by dispatch.py."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.kernels import shapes, w4_skinny, w4_stream_k, w4_triton
from backend.kernels.activation import silu_and_mul
from backend.kernels.rms_norm import rms_norm
from backend.kernels.w4_weight import W4Weight

MAX_FUSED_TOKENS = 640
MAX_TRITON_TOKENS = 64
SCRATCH_BYTES = 64 << 20  # of a dense part; it is written and read again from the L2 cache, in good part


def linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
              is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear_w4."""
    shapes.check_linear_w4(x, weight, bias, norm, is_gated, residual)
    if w4_skinny.fits(x, weight, is_gated):
        return w4_skinny.w4_skinny(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)
    if norm is not None:
        x = rms_norm(x, *norm)
    if x.shape[0] <= MAX_FUSED_TOKENS and w4_stream_k.fits(x, weight, is_gated, residual):
        return w4_stream_k.w4_stream_k(x, weight, bias, is_gated=is_gated, residual=residual)
    y = w4_triton.matmul(x, weight) if x.shape[0] <= MAX_TRITON_TOKENS else _dense_matmul(x, weight)
    if bias is not None:
        y += bias
    if is_gated:
        y = silu_and_mul(y)
    return y if residual is None else residual.add_(y)


def _dense_matmul(x: Tensor, weight: W4Weight) -> Tensor:
    """x Wᵀ, as many rows of W at a time as SCRATCH_BYTES hold."""
    output = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    rows = max(1, min(weight.out_features, SCRATCH_BYTES // (x.element_size() * weight.in_features)))
    dense = torch.empty((rows, weight.in_features), dtype=x.dtype, device=x.device)
    for first in range(0, weight.out_features, rows):
        part = dense[:min(rows, weight.out_features - first)]
        w4_triton.dequantise(weight, first, part)
        torch.mm(x, part.t(), out=output[:, first:first + rows])
    return output
