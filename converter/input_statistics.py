"""Input statistics: what AWQ needs to know of a linear layer's inputs, summed over all calibration tokens.

The mean magnitude of each input channel, and of each group of channels the Gram matrix, from which the error that a
change of the weights makes in the layer's outputs follows without the inputs themselves. Used by awq_layer.py and
awq_search.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backend.layers.parameter import ShardedModule
from backend.layers.weight_format import StoredWeight, WeightFormat


class InputStatistics:
    """Sums over the inputs x [T, in] of a linear layer, in groups of g channels.

    magnitude  [in] float32         sum of |x|
    gram       [in / g, g, g] float32   sum of x xᵀ within each group
    num_tokens"""

    def __init__(self, in_features: int, group_size: int, device: torch.device) -> None:
        self.magnitude = torch.zeros(in_features, device=device)
        self.gram = torch.zeros((in_features // group_size, group_size, group_size), device=device)
        self.num_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs [T, in]."""
        values = inputs.float()
        self.magnitude += values.abs().sum(0)
        groups = values.unflatten(1, self.gram.shape[:2]).transpose(0, 1)  # [in / g, T, g]
        self.gram.baddbmm_(groups.mT, groups)
        self.num_tokens += len(values)

    @property
    def mean_magnitude(self) -> Tensor:
        """[in]."""
        return self.magnitude / max(1, self.num_tokens)

    def gram_of_inputs_over(self, factors: Tensor) -> Tensor:
        """The Gram matrices, had each input channel been divided by its factor."""
        groups = factors.view(self.gram.shape[:2])
        return self.gram / (groups[:, :, None] * groups[:, None, :])


def output_error(difference: Tensor, gram: Tensor) -> Tensor:
    """Squared error in a linear layer's outputs, over all tokens, if its weights change by `difference` [out, in].

    gram  [in / g, g, g]. Returns [out, in / g]: each group's own part, as if errors of groups were independent."""
    groups = difference.unflatten(1, gram.shape[:2]).transpose(0, 1)  # [in / g, out, g]
    return ((groups @ gram) * groups).sum(-1).t()


@dataclass(frozen=True, slots=True)
class Observed:
    """A weight format like `of`, but that the statistics see all inputs."""

    of: WeightFormat
    statistics: InputStatistics

    def tensors(self, in_features: int, out_features: int) -> tuple[StoredWeight, ...]:
        return self.of.tensors(in_features, out_features)

    def prepare(self, layer: ShardedModule) -> None:
        self.of.prepare(layer)

    def apply(self, inputs: Tensor, layer: ShardedModule, bias: Tensor | None, *,
              norm: tuple[Tensor, float] | None = None, is_gated: bool = False,
              residual: Tensor | None = None) -> Tensor:
        if norm is not None:
            weight, eps = norm
            inputs = functional.rms_norm(inputs, weight.shape, weight, eps)
        self.statistics.add(inputs)
        return self.of.apply(inputs, layer, bias, is_gated=is_gated, residual=residual)
