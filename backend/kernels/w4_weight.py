"""W4 weight: four-bit weights in the order in which tensor cores take them, and back again, in plain torch.

Published AWQ weights are packed once, where they are loaded; every kernel reads the one layout. A weight is divided
into pieces of 16 outputs x 128 inputs, all pieces of 16 outputs (a strip) one after the other, with zeros where the
last one is not full. A piece is 1,024 bytes of weights, two tiles of 64 inputs, and then its scales and zeros.

    weights  tile, lane, word: word j of lane 4g + t holds what that lane of a warp gives to the j-th product of 16
             inputs (mma.m16n8k16, wgmma). Nibbles n and n + 4 are neighbouring inputs, 2t and 2t + 1, and n = 0 to 3:
             output g, output g + 8, output g eight inputs on, output g + 8 eight inputs on.
    scales   group, g, half: of output g + 8 half a word, the scale in float16 below, 0x4300 + zero above, which is
             128 + zero in bfloat16.

Used by dispatch.py, reference.py and the w4 kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.kernels import shapes

STRIP = 16  # outputs
PIECE = 128  # inputs
PIECE_WEIGHT_BYTES = STRIP * PIECE // 2
ZERO_BITS = 0x4300
COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)  # in a published word


@dataclass(frozen=True, slots=True)
class W4Weight:
    """A linear layer's weight [Y, X] = (q - zero) · scale, q and zero in 0 … 15.

    packed  [strips, pieces, bytes of a piece] uint8, laid out as this module says"""

    packed: Tensor
    in_features: int
    out_features: int
    group_size: int


def packed_bytes(in_features: int, out_features: int, group_size: int) -> int:
    """The size of W4Weight.packed, for a memory plan."""
    return _count(out_features, STRIP) * _count(in_features, PIECE) * piece_bytes(group_size)


def piece_bytes(group_size: int) -> int:
    """Of weights, and of a word for each output and group."""
    return PIECE_WEIGHT_BYTES + 4 * STRIP * (PIECE // group_size)


def pack_w4(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> W4Weight:
    """Packs a published AWQ weight ("gemm" layout), on the tensors' device.

    qweight  [X, Y/8] int32: nibble n of a word is the weight of output 8c + COLUMN_OF_NIBBLE[n]
    qzeros   [X/g, Y/8] int32, likewise
    scales   [X/g, Y] float16
    g, the group size, is 32, 64 or 128. Raises ShapeError."""
    shapes.check_pack_w4(qweight, qzeros, scales)
    in_features, out_features = qweight.shape[0], scales.shape[1]
    group_size = in_features // scales.shape[0]
    strips, pieces, groups = _count(out_features, STRIP), _count(in_features, PIECE), PIECE // group_size
    # rows: strip, half, g; columns: piece, tile, product, eight inputs on, t, neighbour
    quants = _padded(_nibbles(qweight).t(), strips * STRIP, pieces * PIECE).view(strips, 2, 8, pieces, 2, 4, 2, 4, 2)
    weight_bytes = quants[:, 0] | quants[:, 1] << 4
    weight_bytes = weight_bytes.permute(0, 2, 3, 1, 6, 4, 7, 5).reshape(strips, pieces, PIECE_WEIGHT_BYTES)
    zeros = _nibbles(qzeros).t().to(torch.int16) + ZERO_BITS
    words = _padded(torch.stack((scales.t().view(torch.int16), zeros), dim=2), strips * STRIP, pieces * groups)
    words = words.view(strips, 2, 8, pieces, groups, 2).permute(0, 3, 4, 2, 1, 5).contiguous()
    packed = torch.cat((weight_bytes, words.view(strips, pieces, -1).view(torch.uint8)), dim=2)
    return W4Weight(packed, in_features, out_features, group_size)


def dequantise(weight: W4Weight, dtype: torch.dtype) -> Tensor:
    """[Y, X] in `dtype`; rounded once, from float32, where that is narrower."""
    strips, pieces = weight.packed.shape[:2]
    weight_bytes, words = weight.packed.split([PIECE_WEIGHT_BYTES, weight.packed.shape[2] - PIECE_WEIGHT_BYTES], dim=2)
    # strip, piece, tile, g, t, product, neighbour, eight inputs on -> as in pack_w4
    weight_bytes = weight_bytes.reshape(strips, pieces, 2, 8, 4, 4, 2, 2).permute(0, 3, 1, 2, 5, 7, 4, 6)
    quants = torch.stack((weight_bytes & 15, weight_bytes >> 4), dim=1).reshape(strips * STRIP, -1, weight.group_size)
    words = words.contiguous().view(torch.int16).view(strips, pieces, -1, 8, 2, 2).permute(0, 4, 3, 1, 2, 5)
    scales, zeros = words.reshape(strips * STRIP, -1, 2).unbind(2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = (quants.to(wide) - (zeros & 15)[..., None]) * scales.contiguous().view(torch.float16).to(wide)[..., None]
    return values.flatten(1)[:weight.out_features, :weight.in_features].to(dtype)


def _nibbles(words: Tensor) -> Tensor:
    """[R, Y/8] int32 -> [R, Y] uint8 in 0 … 15."""
    values = torch.empty((words.shape[0], words.shape[1] * 8), dtype=torch.uint8, device=words.device)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        values[:, column::8] = words >> 4 * nibble & 15
    return values


def _padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[R, C, …] -> [rows, columns, …], contiguous, with zeros at the end of either axis."""
    result = tensor.new_zeros((rows, columns, *tensor.shape[2:]))
    result[:tensor.shape[0], :tensor.shape[1]] = tensor
    return result


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
