"""SiLU-and-mul in Triton: SwiGLU's product in one pass over the fused gate | up tensor. Used by dispatch.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels import shapes

TILE_VALUES = 1024


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See reference.silu_and_mul. gate_up [T, 2I]; returns [T, I]."""
    shapes.check_gate_up(gate_up)
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, TILE_VALUES))](
            gate_up, output, gate_up.stride(0), size, TILE=TILE_VALUES)
    return output


@triton.jit
def _silu_and_mul_kernel(gate_up, output, token_stride, size, TILE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < size
    gate = tl.load(gate_up + token * token_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * token_stride + size + column, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(output + token * size + column, product.to(output.dtype.element_ty), mask=inside)
