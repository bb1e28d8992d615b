from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.worker.noise import gumbel_noise, noise_keys

MASK = 2**64 - 1


def splitmix(value: int) -> int:
    """The finaliser in Python's unbounded integers: what the wrapping int64 arithmetic has to equal."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def test_noise_is_the_hash_of_seed_position_and_token_id() -> None:
    seed, position, increment = 2**64 - 3, 1234, 0x9E3779B97F4A7C15
    key = splitmix(splitmix(seed) + position * increment & MASK)
    keys = noise_keys(np.array([seed], np.uint64), np.array([position]))
    assert int(keys[0]) & MASK == key
    uniform = np.array([(splitmix(key + token * increment & MASK) >> 11) * 2.0**-53 for token in range(50)])
    noise = gumbel_noise(torch.from_numpy(keys), 50)[0].double().numpy()
    np.testing.assert_allclose(noise, -np.log(-np.log1p(-uniform)), rtol=1e-4, atol=1e-5)


def test_noise_has_gumbels_mean_and_variance_and_no_correlation() -> None:
    keys = noise_keys(np.zeros(400, np.uint64), np.arange(400))
    noise = gumbel_noise(torch.from_numpy(keys), 1000).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    for other in (noise.roll(1, 0), noise.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]) < 0.01


@pytest.mark.gpu
def test_noise_is_the_same_on_cuda() -> None:
    keys = torch.from_numpy(noise_keys(np.arange(8, dtype=np.uint64), np.arange(8)))
    torch.testing.assert_close(gumbel_noise(keys.cuda(), 5000).cpu(), gumbel_noise(keys, 5000), rtol=1e-5, atol=1e-5)
