"""Noise keys: what makes the random numbers of a draw its own, a hash of (seed, position).

A draw then depends on nothing but its own request: not on the batch around it, not on preemption, not on the rank.
The sampling kernels hash the key with each token id. Used by sampling_state.py."""

from __future__ import annotations

import numpy as np

from backend.kernels.sampling_reference import FACTOR_1, FACTOR_2, INCREMENT


def noise_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One key per draw: seeds [R] uint64, positions [R] int64 → [R] int64."""
    keys = _mix(_mix(seeds) + positions.astype(np.uint64) * np.uint64(INCREMENT))
    return keys.view(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's mixing function; uint64 arithmetic wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(FACTOR_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(FACTOR_2)
    return values ^ (values >> np.uint64(31))
