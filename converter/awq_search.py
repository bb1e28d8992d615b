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
SMALLEST = 1e-4  # of a scale before it is balanced
SHRINKS = tuple(1 - step / 20 for step in range(11))  # of a group's range: 1, 0.95 … 0.5
Regroup = Callable[[Tensor], Tensor]


def search_scales(weight: Tensor, statistics: InputStatistics, group_size: int, pool: Regroup, spread: Regroup
                  ) -> Tensor:
    """The scales of the input channels of weight [out, in] float32 whose power of the inputs' magnitude serves best.

    pool, spread  [in] → a value for each scale, and back: channels that are fed by one share its scale"""
    activation = pool(statistics.mean_magnitude)
    candidates = [_balanced(activation**ratio) for ratio in RATIOS]  # the first is one everywhere
    errors = []
    for scales in candidates:
        factors = spread(scales)
        change = quantise(weight * factors, group_size).dequantised() / factors - weight
        errors.append(output_error(change, statistics.gram).sum())
    return candidates[int(torch.stack(errors).nan_to_num(nan=torch.inf).argmin())]


def fixed_scales(weight: Tensor, statistics: InputStatistics, group_size: int, pool: Regroup) -> Tensor:
    """LMDeploy's formula instead of a search: the square root of the inputs' magnitude over that of the weights."""
    grouped = weight.abs().unflatten(1, (-1, group_size))
    share_of_largest = (grouped / grouped.amax(-1, keepdim=True).clamp(min=SMALLEST**2)).flatten(1).mean(0)
    return _balanced((pool(statistics.mean_magnitude) / pool(share_of_largest).clamp(min=SMALLEST)).sqrt())


def search_ranges(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
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


def _balanced(scales: Tensor) -> Tensor:
    """With the smallest and the largest equally far from one."""
    scales = scales.clamp(min=SMALLEST)
    return scales / (scales.min() * scales.max()).sqrt()
