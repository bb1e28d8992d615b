"""SiLU-and-mul in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import activation, reference
from tests.backend.kernels.comparison import assert_near


@pytest.mark.parametrize("size", [7, 1024, 1500])
def test_gate_and_up_halves_of_any_size_are_multiplied(device, dtype, size):
    gate_up = torch.randn(3, 2 * size).to(device, dtype)
    assert_near(activation.silu_and_mul(gate_up), reference.silu_and_mul(gate_up.double()))


def test_large_gates_do_not_overflow(device, dtype):
    gate_up = torch.tensor([[-200.0, 200.0, 1.0, 1.0]]).to(device, dtype)
    assert_near(activation.silu_and_mul(gate_up), torch.tensor([[0.0, 200.0]]))


def test_an_odd_width_is_refused(device):
    with pytest.raises(ShapeError, match="even"):
        activation.silu_and_mul(torch.zeros(2, 5, device=device))
