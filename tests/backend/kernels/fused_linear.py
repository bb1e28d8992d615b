"""A linear layer with what is fused into it, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backend.kernels import reference
from tests.backend.kernels.comparison import assert_near

EPS = 1e-5
# (norm, bias, gate, residual): each alone, as a decoder layer has them, and all together
FUSIONS = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 0), (0, 1, 0, 1),
           (1, 1, 1, 1)]


def check_fused(kernel: Callable[..., Tensor], x: Tensor, weight: object, values: Tensor,
                fusion: tuple[int, ...]) -> None:
    """The kernel's result equals the reference's in float64, and is in the residual where there is one.

    x       [T, X], on the device and in the dtype under test
    weight  as the kernel takes it
    values  [Y, X] float64, what it stands for"""
    has_norm, has_bias, is_gated, has_residual = fusion
    (num_tokens, size), num_outputs = x.shape, values.shape[0]
    device, dtype = x.device, x.dtype
    bias = torch.randn(num_outputs).to(device, dtype) if has_bias else None
    norm = (torch.rand(size).to(device, dtype) + 0.5, EPS) if has_norm else None
    num_results = num_outputs // 2 if is_gated else num_outputs
    residual = torch.randn(num_tokens, num_results).to(device, dtype) if has_residual else None
    expected = reference.linear(
        x.double(), values, None if bias is None else bias.double(), is_gated=bool(is_gated),
        norm=None if norm is None else (norm[0].double(), EPS),
        residual=None if residual is None else residual.double())
    result = kernel(x, weight, bias, norm=norm, is_gated=bool(is_gated), residual=residual)
    if has_residual:
        assert result.data_ptr() == residual.data_ptr()
    assert_near(result, expected)
