"""Weights in groups as four bits: to the nearest of the grid's values, within the grid's ends."""

from __future__ import annotations

import torch

from converter.group_quantiser import MAX_Q, grid, quantise


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_weight_is_at_most_half_a_step_away():
    weight = weights(16, 256)
    quantised = quantise(weight, 64)
    step = quantised.scales.float().repeat_interleave(64, 1)
    # A zero rounded to a whole step moves the grid's ends by up to half of one.
    assert ((quantised.dequantised() - weight).abs() <= step * 1.01).all()
    assert ((quantised.dequantised() - weight).abs() <= step * 0.501).float().mean() > 0.98


def test_q_and_zero_stay_in_four_bits_when_all_weights_have_one_sign():
    for weight in (weights(8, 64).abs() + 5, -weights(8, 64).abs() - 5):
        quantised = quantise(weight, 32)
        assert quantised.q.max() <= MAX_Q and quantised.zeros.max() <= MAX_Q
        assert ((quantised.dequantised() - weight).abs() < weight.abs().max() / MAX_Q).all()


def test_zero_is_exact():
    weight = weights(8, 64)
    weight[:, ::3] = 0
    assert (quantise(weight, 32).dequantised()[:, ::3] == 0).all()
    assert (quantise(torch.zeros(8, 64), 32).dequantised() == 0).all()


def test_rounding_knows_the_scale_as_it_is_stored():
    weight = weights(4, 32) * 1e-3  # where float16's steps are wide
    quantised = quantise(weight, 32)
    assert quantised.scales.dtype == torch.float16
    scales = quantised.scales.float()[..., None]
    q = (weight.unflatten(1, (-1, 32)) / scales).round() + quantised.zeros[..., None]
    assert torch.equal(q.clamp(0, MAX_Q).flatten(1).to(torch.uint8), quantised.q)


def test_a_scaled_row_keeps_its_numbers():
    weight = weights(8, 64)
    assert torch.equal(quantise(weight, 32).q, quantise(weight * 4, 32).q)


def test_weights_beyond_a_given_range_get_its_ends():
    weight = weights(4, 32).clamp(-1, 1)
    weight[0, 0], weight[0, 1] = 50.0, -50.0
    low, high = torch.full((4, 1), -1.0), torch.full((4, 1), 1.0)
    found = quantise(weight, 32, low, high).dequantised()
    scales, zeros = grid(low, high)
    assert found[0, 0] == (MAX_Q - zeros[0, 0]) * scales[0, 0].float() and found[0, 1] == -zeros[0, 0] * scales[0, 0]
