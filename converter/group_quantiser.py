"""Group quantiser: weights in groups along the input axis as four-bit numbers, and back.

Asymmetric and clamped: w ≈ (q - z) * s with q and z in 0..15, s in float16 as it is stored. Every row and group stands
for itself, so a row that is scaled as a whole keeps its q and z. Used by awq_search, awq_layer and awq_layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 4
MAX_Q = 2**BITS - 1
MIN_RANGE = 1e-5  # a group of zeros still gets a scale


@dataclass(frozen=True, slots=True)
class GroupQuantised:
    """A weight [out, in] in groups of g along the input axis.

    q       [out, in] uint8, 0..15
    zeros   [out, in / g] uint8, 0..15
    scales  [out, in / g] float16"""

    q: Tensor
    zeros: Tensor
    scales: Tensor

    def dequantised(self) -> Tensor:
        """[out, in] float32."""
        grouped = self.q.unflatten(1, (self.scales.shape[1], -1)).float()
        return ((grouped - self.zeros[..., None].float()) * self.scales[..., None].float()).flatten(1)


def quantise(weight: Tensor, group_size: int, low: Tensor | None = None, high: Tensor | None = None) -> GroupQuantised:
    """weight [out, in] float32; low and high [out, in / g]: the range to cover, each group's own where not given."""
    grouped = weight.unflatten(1, (-1, group_size))
    scales, zeros = grid(grouped.amin(-1) if low is None else low, grouped.amax(-1) if high is None else high)
    q = nearest(grouped, scales, zeros)
    return GroupQuantised(q.flatten(1).to(torch.uint8), zeros.to(torch.uint8), scales)


def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(scales float16, zeros float32 in 0..15) of the sixteen values that cover low..high and zero."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = ((high - low).clamp(min=MIN_RANGE) / MAX_Q).half()
    return scales, (-low / scales.float()).round().clamp(0, MAX_Q)


def nearest(grouped: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The q, as float32, of values [..., g] in a grid whose scales and zeros are [...]."""
    return (grouped / scales.float()[..., None]).round().add_(zeros[..., None]).clamp_(0, MAX_Q)
