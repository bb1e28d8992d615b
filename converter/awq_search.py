"""AWQ search: by how much to scale each input channel of a weight before it is quantised, and what range to cover.

Activation-aware weight quantisation (Lin et al., 2023): channels whose inputs are large are scaled up, so that rounding
costs them less, and what feeds them is scaled down. Candidates are judged by the error of the layer's outputs on the
calibration text. Used by awq_layer.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from converter.group_quantiser import grid, nearest, quantise
from converter.input_statistics import InputStatistics, output_error

RATIOS = tuple(step / 20 for step in range(20))
FIXED_RATIO = 0.5  # without a search, as LMDeploy does it
SMALLEST = 1e-4
SHRINKS = tuple(1 - step / 20 for step in range(11))  # of a group's range: 1, 0.95 … 0.5
Spread = Callable[[Tensor], Tensor]


def choose_scales(weight: Tensor, statistics: InputStatistics, group_size: int, is_searched: bool, pool: Spread,
                  spread: Spread) -> Tensor:
    """Scales of the input channels of weight [out, in] float32.

    pool, spread  [in] → a value for each scale, and back: input channels that one channel feeds share a scale"""
    activation, magnitude = pool(statistics.mean_magnitude), pool(relative_magnitude(weight, group_size))
    if not is_searched:
        return _balanced(activation**FIXED_RATIO / magnitude**(1 - FIXED_RATIO))
    candidates = [torch.ones_like(activation)]
    candidates += [_balanced(activation**ratio) for ratio in RATIOS[1:]]
    candidates += [_balanced(activation**ratio / magnitude ** (1 - ratio)) for ratio in RATIOS]
    errors = []
    for scales in candidates:
        factors = spread(scales)
        change = quantise(weight * factors, group_size).dequantised() / factors - weight
        errors.append(output_error(change, statistics.gram).sum())
    return candidates[int(torch.stack(errors).nan_to_num(nan=torch.inf).argmin())]


def choose_ranges(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high) [out, in / g] of weight [out, in]: a range cut off at both ends makes finer steps for what is left.

    gram  [in / g, g, g] of the inputs that this weight, already scaled, is multiplied by"""
    grouped = weight.unflatten(1, gram.shape[:2])
    low, high = grouped.amin(-1), grouped.amax(-1)
    best = torch.full_like(low, torch.inf)
    shrink = torch.ones_like(low)
    for candidate in SHRINKS:
        scales, zeros = grid(low * candidate, high * candidate)
        q = nearest(grouped, scales, zeros)
        change = q.sub_(zeros[..., None]).mul_(scales.float()[..., None]).sub_(grouped)
        error = output_error(change.flatten(1), gram)
        shrink = torch.where(error < best, candidate, shrink)
        best = torch.minimum(error, best)
    return low * shrink, high * shrink


def relative_magnitude(weight: Tensor, group_size: int) -> Tensor:
    """[in]: mean over outputs of |w| as a share of the largest of its group."""
    grouped = weight.abs().unflatten(1, (-1, group_size))
    return (grouped / grouped.amax(-1, keepdim=True).clamp(min=SMALLEST**2)).flatten(1).mean(0).clamp(min=SMALLEST)


def _balanced(scales: Tensor) -> Tensor:
    """With the smallest and the largest equally far from one."""
    scales = scales.nan_to_num().clamp(min=SMALLEST)
    return scales / (scales.min() * scales.max()).sqrt()
