"""RMSNorm in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import reference, rms_norm
from tests.backend.kernels.comparison import assert_near

EPS = 1e-6


@pytest.mark.parametrize("size", [64, 100, 4096])
def test_rows_of_any_size_are_normalised(device, dtype, size):
    x = torch.randn(5, size + 8).to(device, dtype)[:, :size]
    weight = torch.randn(size).to(device, dtype)
    assert_near(rms_norm.rms_norm(x, weight, EPS), reference.rms_norm(x.double(), weight.double(), EPS))


def test_heads_are_normalised_where_they_lie_in_the_fused_tensor(device, dtype):
    qkv = torch.randn(7, (3 + 2) * 80).to(device, dtype)
    q, weight = qkv[:, : 3 * 80].view(7, 3, 80), torch.randn(80).to(device, dtype)
    assert_near(rms_norm.rms_norm(q, weight, EPS), reference.rms_norm(q.double(), weight.double(), EPS))


def test_no_rows_give_no_rows(device):
    assert rms_norm.rms_norm(torch.zeros(0, 64, device=device), torch.ones(64, device=device), EPS).shape == (0, 64)


def test_a_weight_of_another_size_is_refused(device):
    with pytest.raises(ShapeError, match="weight"):
        rms_norm.rms_norm(torch.zeros(2, 64, device=device), torch.ones(32, device=device), EPS)
