"""Linear layers with four-bit weights on a GPU: which kernel multiplies, decided by the number of tokens.

Used by dispatch.py."""

from __future__ import annotations

from torch import Tensor

from backend.kernels import linear, shapes, w4_weight
from backend.kernels.w4_weight import W4Weight


def linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
              is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear_w4."""
    shapes.check_linear_w4(x, weight, bias, norm, is_gated, residual)
    dense = w4_weight.dequantise(weight, x.dtype)
    return linear.linear(x, dense, bias, norm=norm, is_gated=is_gated, residual=residual)
