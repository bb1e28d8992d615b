from __future__ import annotations

import numpy as np

from backend.worker.noise import noise_keys

MASK = 2**64 - 1


def splitmix(value: int) -> int:
    """The finaliser in Python's unbounded integers: what the wrapping uint64 arithmetic has to equal."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def test_a_key_is_the_hash_of_seed_and_position() -> None:
    seeds, positions = (0, 2**64 - 3, 2**63), (0, 1234, 2**40)
    keys = noise_keys(np.array(seeds, np.uint64), np.array(positions))
    assert keys.dtype == np.int64
    assert [int(key) & MASK for key in keys] == [
        splitmix(splitmix(seed) + position * 0x9E3779B97F4A7C15 & MASK)
        for seed, position in zip(seeds, positions, strict=True)]
