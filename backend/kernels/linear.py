"""Linear layers on a GPU: which kernel multiplies, decided by the number of tokens.

One token, and on Hopper a few, go through a kernel of ours that fuses norm, gate and residual addition. More go, behind
a norm of their own, through one that fuses gate and residual addition, where that is faster than cuBLAS, else through
cuBLAS. Used by dispatch.py."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.kernels import matvec, matvec_cuda, shapes, skinny_matmul, stream_k
from backend.kernels.activation import silu_and_mul
from backend.kernels.rms_norm import rms_norm


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
           is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear."""
    if x.shape[0] == 1:
        return _one_token(x, weight, bias, norm, is_gated, residual, x.dtype)
    shapes.check_linear(x, weight, bias, norm, is_gated, residual)
    if skinny_matmul.fits(x, weight):
        return _few_tokens(x, weight, bias, norm, is_gated, residual, x.dtype)
    if norm is not None:
        x = rms_norm(x, *norm)
    if layout := stream_k.choose_layout(x, weight, is_gated, residual):
        return stream_k.stream_k(x, weight, bias, is_gated=is_gated, residual=residual, layout=layout)
    if residual is not None and not is_gated:
        residual.addmm_(x, weight.t())
        return residual if bias is None else residual.add_(bias)
    y = torch.nn.functional.linear(x, weight, bias)
    if is_gated:
        y = silu_and_mul(y)
    return y if residual is None else residual.add_(y)


def logits(x: Tensor, weight: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    """See reference.logits. Never rounded to x's dtype."""
    if x.shape[0] == 1:
        return _one_token(x, weight, None, norm, False, None, torch.float32)
    shapes.check_linear(x, weight, None, norm, False, None)
    if skinny_matmul.fits(x, weight):
        return _few_tokens(x, weight, None, norm, False, None, torch.float32)
    x = rms_norm(x, *norm)
    return x @ weight.t() if x.dtype == torch.float32 else torch.mm(x, weight.t(), out_dtype=torch.float32)


def _one_token(x: Tensor, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, float] | None, is_gated: bool,
               residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    kernel = matvec_cuda.matvec if matvec_cuda.fits(x, weight) else matvec.matvec
    return kernel(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual, dtype=dtype)


def _few_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, float] | None, is_gated: bool,
                residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    if norm is not None and not skinny_matmul.fuses_norm(x):
        x, norm = rms_norm(x, *norm), None
    return skinny_matmul.skinny_matmul(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual, dtype=dtype)
