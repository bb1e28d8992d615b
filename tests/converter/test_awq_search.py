"""The search: the error that it judges by is the outputs', and what it chooses is no worse than to do nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from converter.awq_search import fixed_scales, search_ranges, search_scales
from converter.group_quantiser import quantise
from converter.input_statistics import InputStatistics, output_error

GROUP = 32


def same(values: Tensor) -> Tensor:
    return values


def inputs_and_weight(outliers: int = 4) -> tuple[Tensor, Tensor]:
    """x [512, 64], of which a few channels are 30 times as large as the others, and a weight [48, 64]."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(512, 64, generator=generator), torch.randn(48, 64, generator=generator)
    inputs[:, :: 64 // outliers] *= 30
    return inputs, weight


def statistics_of(inputs: Tensor) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1], GROUP, inputs.device)
    for batch in inputs.split(100):
        statistics.add(batch)
    return statistics


def error_with(weight: Tensor, inputs: Tensor, scales: Tensor) -> float:
    change = quantise(weight * scales, GROUP).dequantised() / scales - weight
    return float((inputs @ change.t()).square().sum())


def test_statistics_are_those_of_all_batches():
    inputs, _ = inputs_and_weight()
    statistics = statistics_of(inputs)
    assert torch.allclose(statistics.mean_magnitude, inputs.abs().mean(0))
    assert torch.allclose(statistics.gram[1], inputs[:, GROUP:].t() @ inputs[:, GROUP:], rtol=1e-4, atol=1e-2)


def test_output_error_of_a_change_within_a_group_is_the_outputs_squared_difference():
    inputs, weight = inputs_and_weight()
    change = torch.zeros_like(weight)
    change[:, :GROUP] = 0.1 * weight[:, :GROUP]
    found = output_error(change, statistics_of(inputs).gram)
    assert found.shape == (48, 2) and (found[:, 1] == 0).all()
    assert torch.allclose(found[:, 0], (inputs @ change.t()).square().sum(0), rtol=1e-4)


def test_channels_with_large_inputs_are_scaled_up_and_the_error_falls():
    inputs, weight = inputs_and_weight()
    scales = search_scales(weight, statistics_of(inputs), GROUP, same, same)
    assert scales[:: 16].min() > 2 * scales[1:16].max()
    assert error_with(weight, inputs, scales) < 0.5 * error_with(weight, inputs, torch.ones(64))


def test_search_is_not_worse_than_the_formula():
    inputs, weight = inputs_and_weight()
    statistics = statistics_of(inputs)
    found = error_with(weight, inputs, search_scales(weight, statistics, GROUP, same, same))
    assert found < error_with(weight, inputs, fixed_scales(weight, statistics, GROUP, same))


def test_channels_without_any_input_do_no_harm():
    inputs, weight = inputs_and_weight()
    inputs[:, 5] = 0
    for scales in (search_scales(weight, statistics_of(inputs), GROUP, same, same),
                   fixed_scales(weight, statistics_of(inputs), GROUP, same),
                   fixed_scales(torch.zeros_like(weight), statistics_of(inputs), GROUP, same)):
        assert scales.isfinite().all() and (scales > 0).all()


def test_a_range_is_cut_where_a_weight_that_hardly_counts_widens_it():
    inputs, weight = inputs_and_weight()
    weight[:, 7], inputs[:, 7] = 8.0, inputs[:, 7] * 1e-3
    gram = statistics_of(inputs).gram
    low, high = search_ranges(weight, gram)
    whole, cut = quantise(weight, GROUP), quantise(weight, GROUP, low, high)
    assert high[:, 0].mean() < 6.5
    assert output_error(cut.dequantised() - weight, gram).sum() < 0.8 * output_error(
        whole.dequantised() - weight, gram).sum()


def test_no_group_is_worse_for_its_range():
    inputs, weight = inputs_and_weight()
    gram = statistics_of(inputs).gram
    whole, cut = quantise(weight, GROUP), quantise(weight, GROUP, *search_ranges(weight, gram))
    before, after = (output_error(each.dequantised() - weight, gram) for each in (whole, cut))
    assert (after <= before * 1.0001).all()
