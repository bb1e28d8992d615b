"""How close a kernel has to come to its oracle, by dtype; used by every kernel test."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the largest value of the vector (a head, a hidden state), because an attention output shrinks as its
# context grows. float32 differs from the oracle in the order of sums only. Half precision rounds the result once, and
# attention also its probabilities before the second product: four units in the last place in all.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Each vector along the last axis equals that of expected (in higher precision) within actual's tolerance."""
    assert actual.shape == expected.shape
    wide = expected.double().cpu()
    error = (actual.double().cpu() - wide).abs() / wide.abs().amax(-1, keepdim=True)
    assert error.max() <= TOLERANCE[actual.dtype], f"largest relative error {error.max():.3g}"
