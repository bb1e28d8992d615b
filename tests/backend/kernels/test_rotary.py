"""Rotary embedding in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import reference, rotary
from tests.backend.kernels.comparison import assert_near


def heads_of(qkv, num_heads, num_kv_heads, head_dim):
    q, k, _ = qkv.split([num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], dim=1)
    return q.unflatten(1, (num_heads, head_dim)), k.unflatten(1, (num_kv_heads, head_dim))


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "rotated"),
                         [(6, 2, 64, 64), (3, 1, 80, 32), (2, 2, 96, 96)])
def test_heads_are_rotated_in_place_in_the_fused_tensor(device, dtype, num_heads, num_kv_heads, head_dim, rotated):
    qkv = torch.randn(5, (num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype)
    expected = qkv.double()
    angles = torch.rand(40, rotated // 2, device=device) * 6
    cos_sin = torch.stack((angles.cos(), angles.sin()), dim=1)
    positions = torch.tensor([0, 39, 7, 7, 1], device=device)
    reference.rotary(*heads_of(expected, num_heads, num_kv_heads, head_dim), positions, cos_sin)
    rotary.rotary(*heads_of(qkv, num_heads, num_kv_heads, head_dim), positions, cos_sin)
    assert_near(qkv, expected)


def test_heads_whose_values_are_apart_are_refused(device):
    q = torch.zeros(1, 8, 2, device=device).transpose(1, 2)
    with pytest.raises(ShapeError, match="next to each other"):
        rotary.rotary(q, q, torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 2, 4, device=device))
