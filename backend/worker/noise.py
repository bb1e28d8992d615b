"""Noise: random numbers without state, a hash of (seed, position, token id).

A draw then depends on nothing but its own request: not on the batch around it, not on preemption, not on the rank.
The mixing function is splitmix64's (Steele, Lea and Flood, 2014). Integer arithmetic wraps alike on host, CPU and
CUDA, so the hash is the same everywhere. Used by sampling_state.py (keys) and sampler.py (noise)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_INCREMENT, _FACTOR_1, _FACTOR_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def noise_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One key per draw: seeds [R] uint64, positions [R] int64 → [R] int64."""
    keys = _mix_host(_mix_host(seeds) + positions.astype(np.uint64) * np.uint64(_INCREMENT))
    return keys.view(np.int64)


def gumbel_noise(keys: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for each token of each draw: keys [R] int64 → [R, vocab_size] float32, always finite.

    argmax(log p + noise) is a draw from p (Gumbel, 1954)."""
    ids = torch.arange(vocab_size, dtype=torch.int64, device=keys.device)
    mixed = keys[:, None] + ids.mul_(_signed(_INCREMENT))
    mixed.bitwise_xor_(_shift_right(mixed, 30)).mul_(_signed(_FACTOR_1))
    mixed.bitwise_xor_(_shift_right(mixed, 27)).mul_(_signed(_FACTOR_2))
    mixed.bitwise_xor_(_shift_right(mixed, 31))
    # 53 bits as a float32 keep their relative precision near 0, which is where the winners are; 1 is cut off.
    uniform = _shift_right(mixed, 11).float().add_(1.0).mul_(2.0**-53).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix_host(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FACTOR_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_FACTOR_2)
    return values ^ (values >> np.uint64(31))


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own shift of int64 copies the sign."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)  # all three have their highest bit set
