"""Four-bit weights in Triton: a product of few tokens, and the weight as a dense matrix for products of many.

The way of devices and sizes for which w4_skinny.py is not made. A value is found by its place in the packed weight, as
w4_weight.py lays it out; neighbours share words, which the L1 cache serves. Used by w4_linear.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from backend.kernels.w4_weight import PIECE, STRIP, W4Weight

ROWS = 32  # outputs of a program
NUM_WARPS = 4
MAX_TOKENS = 64  # in a tile


def matmul(x: Tensor, weight: W4Weight) -> Tensor:
    """x [T, X] -> [T, Y] in x's dtype: x Wᵀ. Weights are rounded to x's dtype, sums are in float32."""
    num_tokens = x.shape[0]
    output = torch.empty((num_tokens, weight.out_features), dtype=x.dtype, device=x.device)
    if num_tokens:
        tokens = min(MAX_TOKENS, max(16, triton.next_power_of_2(num_tokens)))
        grid = triton.cdiv(weight.out_features, ROWS), triton.cdiv(num_tokens, tokens)
        _w4_matmul_kernel[grid](
            x, weight.packed.view(torch.int32), output, num_tokens, weight.out_features, x.stride(0),
            SIZE=weight.in_features, GROUP=weight.group_size, PIECE=PIECE, STRIP=STRIP, ROWS=ROWS, TOKENS=tokens,
            num_warps=NUM_WARPS, num_stages=1)  # words that neighbours share are not worth a place in shared memory
    return output


def dequantise(weight: W4Weight, first: int, output: Tensor) -> None:
    """Outputs from `first` on, as many as `output` [R, X] has rows, in its dtype."""
    num_rows = output.shape[0]
    grid = triton.cdiv(num_rows, STRIP), triton.cdiv(weight.in_features, PIECE)
    _w4_dequantise_kernel[grid](
        weight.packed.view(torch.int32), output, first, num_rows, SIZE=weight.in_features, GROUP=weight.group_size,
        PIECE=PIECE, STRIP=STRIP, num_warps=NUM_WARPS)


@triton.jit
def _piece_values(words, row, piece, SIZE: tl.constexpr, GROUP: tl.constexpr, PIECE: tl.constexpr,
                  STRIP: tl.constexpr):
    """Float32 [rows, PIECE] of a piece of inputs; rows [R] int64, the number of an output each."""
    PIECES: tl.constexpr = (SIZE + PIECE - 1) // PIECE
    WEIGHT_WORDS: tl.constexpr = STRIP * PIECE // 8
    PIECE_WORDS: tl.constexpr = WEIGHT_WORDS + STRIP * (PIECE // GROUP)
    column = tl.arange(0, PIECE)
    start = words + (row // STRIP * PIECES + piece) * PIECE_WORDS
    half, g = row % STRIP // 8, row % 8
    product, t = column % 64 // 16, column % 8 // 2
    place = column // 64 * 128 + t * 4 + product
    word = tl.load(start[:, None] + (g * 16)[:, None] + place[None, :])
    shift = (half * 4).to(tl.int32)[:, None] + (column % 16 // 8 * 8 + column % 2 * 16)[None, :]
    quant = (word >> shift) & 15
    scale_place = WEIGHT_WORDS + column // GROUP * STRIP
    scale_word = tl.load(start[:, None] + (g * 2 + half)[:, None] + scale_place[None, :])
    scale = (scale_word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return (quant - ((scale_word >> 16) & 15)).to(tl.float32) * scale


@triton.jit(do_not_specialize=["num_tokens", "num_outputs"])
def _w4_matmul_kernel(x, words, output, num_tokens, num_outputs, x_stride, SIZE: tl.constexpr, GROUP: tl.constexpr,
                      PIECE: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = row < num_outputs
    packed_row = tl.where(has_row, row, 0).to(tl.int64)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    has_token = token < num_tokens
    sums = tl.zeros([TOKENS, ROWS], tl.float32)
    for piece in range(0, (SIZE + PIECE - 1) // PIECE):
        column = piece * PIECE + tl.arange(0, PIECE)
        inputs = tl.load(x + token[:, None] * x_stride + column[None, :],
                         mask=has_token[:, None] & (column < SIZE)[None, :], other=0.0)
        values = _piece_values(words, packed_row, piece, SIZE, GROUP, PIECE, STRIP)
        sums = tl.dot(inputs, tl.trans(values.to(inputs.dtype)), sums, input_precision="ieee")
    place = output + token[:, None] * num_outputs + row[None, :]
    tl.store(place, sums.to(output.dtype.element_ty), mask=has_token[:, None] & has_row[None, :])


@triton.jit(do_not_specialize=["first", "num_rows"])
def _w4_dequantise_kernel(words, output, first, num_rows, SIZE: tl.constexpr, GROUP: tl.constexpr,
                          PIECE: tl.constexpr, STRIP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * STRIP + tl.arange(0, STRIP)
    piece = tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    has_row = row < num_rows
    values = _piece_values(words, tl.where(has_row, row + first, first), piece, SIZE, GROUP, PIECE, STRIP)
    tl.store(output + row[:, None] * SIZE + column[None, :], values.to(output.dtype.element_ty),
             mask=has_row[:, None] & (column < SIZE)[None, :])
