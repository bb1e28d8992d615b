"""Matrix-vector product in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import matvec, reference
from tests.backend.kernels.comparison import assert_near


@pytest.mark.parametrize("size", [64, 100, 4096, 5000])
def test_a_row_of_any_size_is_multiplied(device, dtype, size):
    x, weight = torch.randn(1, size).to(device, dtype), torch.randn(7, size).to(device, dtype)
    assert_near(matvec.matvec(x, weight, None), reference.linear(x.double(), weight.double(), None))


def test_the_bias_is_added(device, dtype):
    x, weight, bias = (torch.randn(shape).to(device, dtype) for shape in ((1, 32), (5, 32), (5,)))
    assert_near(matvec.matvec(x, weight, bias), reference.linear(x.double(), weight.double(), bias.double()))


@pytest.mark.parametrize(("x", "weight", "bias", "message"), [
    ((2, 8), (4, 8), None, r"x must be \[1, X\]"),
    ((1, 8), (4, 9), None, r"x must be \[1, X\]"),
    ((1, 8), (4, 8), (5,), r"bias is \[5\]; it must be \[4\]")])
def test_shapes_that_do_not_fit_are_refused(device, x, weight, bias, message):
    with pytest.raises(ShapeError, match=message):
        matvec.matvec(torch.zeros(x, device=device), torch.zeros(weight, device=device),
                      None if bias is None else torch.zeros(bias, device=device))
