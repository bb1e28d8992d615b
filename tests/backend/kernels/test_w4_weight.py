"""Four-bit weights: what is packed is what was published, whatever its size, and what is wrong is refused."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import dispatch, reference, w4_weight
from tests.backend.kernels.awq import published_weight


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("in_features", "out_features"), [(128, 16), (256, 48), (384, 8), (640, 40)])
def test_a_packed_weight_is_the_published_one(in_features, out_features, group_size, device):
    published = published_weight(in_features, out_features, group_size, device)
    weight = dispatch.pack_w4(*published.tensors)
    assert (weight.in_features, weight.out_features, weight.group_size) == (in_features, out_features, group_size)
    assert torch.equal(w4_weight.dequantise(weight, torch.float64), published.values)


def test_inputs_that_do_not_fill_a_piece_are_packed(device):
    published = published_weight(96, 24, 32, device)
    weight = dispatch.pack_w4(*published.tensors)
    assert torch.equal(w4_weight.dequantise(weight, torch.float64), published.values)


def test_a_packed_weight_is_as_large_as_the_memory_plan_says():
    for in_features, out_features, group_size in ((96, 24, 32), (4096, 64, 128), (192, 16, 64)):
        weight = dispatch.pack_w4(*published_weight(in_features, out_features, group_size).tensors)
        assert weight.packed.nbytes == w4_weight.packed_bytes(in_features, out_features, group_size)


def test_the_product_is_that_of_the_dequantised_weight():
    published = published_weight(256, 48, 64)
    x, bias, factor = (torch.randn(size) for size in ((3, 256), (48,), (256,)))
    residual = torch.randn(3, 24)
    operands = {"norm": (factor, 1e-5), "is_gated": True}
    expected = reference.linear(x, published.values.float(), bias, residual=residual.clone(), **operands)
    result = dispatch.linear_w4(x, dispatch.pack_w4(*published.tensors), bias, residual=residual, **operands)
    assert result is residual
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"scales": torch.zeros(2, 24).half()}, r"must be \[X, Y/8\], \[X/g, Y/8\] and \[X/g, Y\]"),
    ({"qzeros": torch.zeros(1, 2).int()}, r"must be \[X, Y/8\]"),
    ({"scales": torch.zeros(2, 16)}, "scales is torch.float32"),
    ({"qweight": torch.zeros(256, 2).long()}, "qweight is torch.int64"),
    ({"qweight": torch.zeros(512, 2).int()}, "512 inputs in 2 groups; the group size must be one of 32, 64, 128"),
    ({"qweight": torch.zeros(0, 2).int(), "qzeros": torch.zeros(0, 2).int(), "scales": torch.zeros(0, 16).half()},
     "0 inputs in 0 groups"),
])
def test_tensors_that_do_not_fit_are_refused(change, message):
    tensors = {"qweight": torch.zeros(256, 2).int(), "qzeros": torch.zeros(2, 2).int(),
               "scales": torch.zeros(2, 16).half()}
    dispatch.pack_w4(**tensors)
    with pytest.raises(ShapeError, match=message):
        dispatch.pack_w4(**tensors | change)


def test_inputs_of_another_size_are_refused(device):
    weight = dispatch.pack_w4(*published_weight(128, 16, 32, device).tensors)
    with pytest.raises(ShapeError, match=r"x is \[2, 64\]; it must be \[T, 128\]"):
        dispatch.linear_w4(torch.zeros(2, 64, device=device), weight)
    with pytest.raises(ShapeError, match=r"bias is \[8\]; it must be \[16\]"):
        dispatch.linear_w4(torch.zeros(2, 128, device=device), weight, torch.zeros(8, device=device))
