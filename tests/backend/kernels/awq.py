"""A random AWQ weight as it is published, written down from the layout's definition, with the values it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output, of eight, that each nibble of a word belongs to


@dataclass(frozen=True, slots=True)
class PublishedWeight:
    """tensors: qweight [X, Y/8], qzeros [X/g, Y/8], scales [X/g, Y]; values [Y, X] float64."""

    tensors: tuple[Tensor, Tensor, Tensor]
    values: Tensor


def published_weight(in_features: int, out_features: int, group_size: int, device: str = "cpu") -> PublishedWeight:
    """Weights of about 1 / sqrt(X), so that products are about as large as their inputs."""
    num_groups = in_features // group_size
    quants = torch.randint(0, 16, (in_features, out_features))
    zeros = torch.randint(0, 16, (num_groups, out_features))
    scales = ((torch.rand(num_groups, out_features) + 0.5) / (6 * in_features**0.5)).half()
    spread = (quants - zeros.repeat_interleave(group_size, 0)).double()
    values = spread * scales.double().repeat_interleave(group_size, 0)
    tensors = _words(quants), _words(zeros), scales
    return PublishedWeight(tuple(tensor.to(device) for tensor in tensors), values.t().contiguous().to(device))


def _words(values: Tensor) -> Tensor:
    words = sum(values[:, column::8] << 4 * nibble for nibble, column in enumerate(ORDER))
    return (words - (words >= 2**31) * 2**32).int()
