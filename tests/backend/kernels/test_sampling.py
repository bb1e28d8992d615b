"""Sampling in Triton against its reference, which tests/backend/worker/test_sampler.py holds to the naive filters.

With the same keys both draw the same tokens, except where a sum of probabilities that a filter compares, or two noisy
logits, are closer than float32 rounding; the fixed cases here have none of those."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.kernels import sampling, sampling_reference

MASK = 2**64 - 1
TABLE_SIZE = 200
NUM_DRAWS = 4000
SHARE_TOLERANCE = 5 * math.sqrt(0.25 / NUM_DRAWS)  # five standard deviations


@dataclass
class Rows:
    """Arguments of draw, but for the token table."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    keys: Tensor

    def draw(self, kernels=sampling, device: str = "cpu") -> Tensor:
        arguments = [value.to(device) for value in vars(self).values()]
        table = torch.full((TABLE_SIZE,), -1, dtype=torch.int32, device=device)
        slots = torch.arange(len(self.logits), device=device).flip(0) % TABLE_SIZE
        token_ids = kernels.draw(*arguments, table.view(10, -1), slots)
        if len(slots) <= TABLE_SIZE:
            assert torch.equal(table[slots].long(), token_ids) and (table >= 0).sum() == len(slots)
        return token_ids.cpu()


def rows_of(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0,
            first_key: int = 0) -> Rows:
    """Rows that all want the same, each with a key of its own."""
    count, vocab_size = logits.shape
    top_k = min(top_k or vocab_size, vocab_size)
    return Rows(logits, torch.full((count,), temperature), torch.full((count,), top_k, dtype=torch.int32),
                torch.full((count,), top_p), torch.full((count,), min_p), torch.arange(first_key, first_key + count))


def assert_same(rows: Rows, device: str) -> None:
    assert rows.draw(device=device).tolist() == rows.draw(sampling_reference).tolist()


def mixed_rows(logits: Tensor) -> Rows:
    """Every combination of options among the rows, greedy ones too."""
    count, vocab_size = logits.shape

    def pick(values: list[float]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (count,))]

    return Rows(logits, pick([0.0, 0.3, 1.0, 2.0]),
                pick([1, 2, 5, 50, 1000, 3000, vocab_size, vocab_size]).clamp(max=vocab_size).int(),
                pick([1.0, 0.05, 0.5, 0.8, 0.95, 0.999]), pick([0.0, 0.0, 0.0, 0.01, 0.1, 1.0]),
                torch.randint(-2**63, 2**63 - 1, (count,)))


@pytest.mark.parametrize("vocab_size", [40, 97, 5000, 20_000])
@pytest.mark.parametrize("kind", ["normal", "with equals", "flat", "peaked"])
def test_every_combination_gives_the_token_of_the_reference(device, vocab_size, kind):
    logits = torch.randn(24, vocab_size) * {"flat": 0.01, "peaked": 5.0}.get(kind, 1.3)
    assert_same(mixed_rows(logits.bfloat16().float() if kind == "with equals" else logits), device)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [0.5, 1.3, 4.0])
def test_a_large_batch_gives_the_tokens_of_the_reference(scale):
    logits = torch.randn(256, 92_544) * scale
    for rows in (mixed_rows(logits), rows_of(logits, top_k=50, top_p=0.8), rows_of(logits, top_p=0.8), rows_of(logits)):
        differing = (rows.draw(device="cuda") != rows.draw(sampling_reference)).sum()
        assert differing <= 1  # of 256: a border of top_p within rounding


@pytest.mark.parametrize("kernels", [sampling, sampling_reference], ids=["triton", "reference"])
def test_greedy_rows_take_the_lowest_of_equals(device, kernels):
    logits = torch.zeros(3, 9000)
    logits[0, [8999, 4500, 404]] = 2.0
    logits[1, [8000, 8001]] = 2.0
    rows = replace(rows_of(logits, temperature=0.0, top_k=3, top_p=0.1), logits=logits)
    assert rows.draw(kernels, device if kernels is sampling else "cpu").tolist() == [404, 8000, 0]


def test_a_top_k_beyond_the_group_maxima_is_found(device):
    logits = torch.randn(4, 9000)
    assert_same(replace(rows_of(logits, temperature=50.0), top_k=torch.tensor([4097, 6000, 8999, 9000]).int()), device)


def test_more_equals_than_can_be_gathered_are_all_kept(device):
    logits = torch.zeros(6, 6000)
    logits[:, :3] = 1.0
    rows = replace(rows_of(logits, temperature=20.0), top_k=torch.tensor([3, 4, 4, 4, 10, 10]).int())
    found = rows.draw(device=device)
    assert found[0] < 3 and (found[1:] >= 3).all()
    assert found.tolist() == rows.draw(sampling_reference).tolist()


@pytest.mark.parametrize("kernels", [sampling, sampling_reference], ids=["triton", "reference"])
@pytest.mark.parametrize("top_p", [0.0, 1e-45, 1e-20])
def test_a_top_p_of_next_to_nothing_keeps_the_likeliest(device, kernels, top_p):
    logits = torch.randn(4, 300)
    for top_k in (None, 20):
        rows = rows_of(logits, temperature=5.0, top_k=top_k, top_p=top_p)
        assert torch.equal(rows.draw(kernels, device if kernels is sampling else "cpu"), logits.argmax(-1))


@pytest.mark.parametrize("kernels", [sampling, sampling_reference], ids=["triton", "reference"])
def test_top_p_weighs_all_equals_of_the_least_that_top_k_keeps(device, kernels):
    """Of 1 + 2 equals, all kept by a top_k of 2, the best has a share of 0.4: with top_p 0.35 it stays alone."""
    logits = torch.full((10, 30), -20.0)
    logits[:, 11:13], logits[:, 10] = 0.0, math.log(4 / 3)
    where = device if kernels is sampling else "cpu"
    assert set(rows_of(logits, top_k=2, top_p=0.35).draw(kernels, where).tolist()) == {10}
    assert set(rows_of(logits, top_k=2, top_p=0.45).draw(kernels, where).tolist()) == {10, 11, 12}
    beside_others = rows_of(torch.cat((logits, logits)), top_k=2, top_p=0.35)
    beside_others.top_k[10:] = 30
    assert set(beside_others.draw(kernels, where)[:10].tolist()) == {10}


@pytest.mark.parametrize("options", [
    {}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.6, "min_p": 0.1, "temperature": 1.7}], ids=str)
@pytest.mark.gpu
def test_draws_follow_the_distribution(options):
    logits = torch.randn(40) * 2
    rows = rows_of(logits.expand(NUM_DRAWS, -1).contiguous(), **options)
    found, expected = (torch.bincount(rows.draw(*where), minlength=40) / NUM_DRAWS
                       for where in ((sampling, "cuda"), (sampling_reference,)))
    assert (found - expected).abs().max() < SHARE_TOLERANCE
    assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize("temperature", [1e-5, 1.0, 100.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 35}], ids=str)
def test_extreme_logits_give_the_token_of_the_reference(device, temperature, options):
    logits = torch.stack((torch.full((40,), -1e30), torch.full((40,), -torch.inf), torch.randn(40), torch.randn(40)))
    logits[:2, 6], logits[2, 7], logits[3, ::2] = 1e30, 3e38, -torch.inf
    assert_same(rows_of(logits, temperature=temperature, **options), device)


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_row_without_a_finite_logit_gives_a_token(device, value):
    assert rows_of(torch.full((1, 100), value), top_k=5, top_p=0.5).draw(device=device).tolist() == [0]


def test_noise_is_the_hash_of_key_and_token_id():
    """In Python's unbounded integers."""
    key, increment = 2**64 - 12345, 0x9E3779B97F4A7C15

    def splitmix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
        return value ^ (value >> 31)

    uniform = np.array([(splitmix(key + token * increment & MASK) >> 11) * 2.0**-53 for token in range(50)])
    noise = sampling_reference.gumbel_noise(torch.tensor([key - 2**64]), 50)[0].double().numpy()
    np.testing.assert_allclose(noise, -np.log(-np.log1p(-uniform)), rtol=1e-4, atol=1e-5)


def test_noise_has_gumbels_mean_and_variance_and_no_correlation():
    keys = torch.randint(-2**63, 2**63 - 1, (400,))
    noise = sampling_reference.gumbel_noise(keys, 1000).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    for other in (noise.roll(1, 0), noise.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]) < 0.01


def test_noise_of_unlikely_hashes_is_as_precise_as_the_references(device):
    """The largest noise comes from the smallest hashes, where 1 less them rounds to 1."""
    keys = torch.randint(-2**63, 2**63 - 1, (8,))
    noise = sampling_reference.gumbel_noise(keys, 30_000)
    assert_same(rows_of(torch.zeros(8, 30_000)), device)
    assert noise.max() > 11


def test_logits_that_are_cut_from_wider_ones_are_refused():
    """The kernel takes rows to lie one after the other."""
    rows = rows_of(torch.randn(4, 66)[:, :65])
    with pytest.raises(AssertionError):
        rows.draw(device="cpu")


def test_a_top_p_that_is_nothing_among_equals_keeps_a_token(device):
    rows = rows_of(torch.zeros(3, 64), top_p=1e-46)
    assert (rows.draw(device=device) < 64).all()


@pytest.mark.parametrize("kernels", [sampling, sampling_reference], ids=["triton", "reference"])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 35, "top_p": 0.9, "min_p": 0.1}],
                         ids=str)
def test_infinite_logits_are_drawn_from_as_the_largest_finite_ones(device, kernels, options):
    infinite = [3, 5, 17, 29]
    logits = torch.randn(8, 40)
    logits[:, infinite], logits[:, 11] = torch.inf, torch.nan if kernels is sampling else -torch.inf
    finite = logits.masked_fill(logits == torch.inf, torch.finfo(torch.float32).max)
    where = device if kernels is sampling else "cpu"
    found = rows_of(logits, **options).draw(kernels, where)
    assert set(found.tolist()) <= set(infinite) and len(set(found.tolist())) > 1
    assert found.tolist() == rows_of(finite.nan_to_num(-torch.inf), **options).draw(sampling_reference).tolist()
