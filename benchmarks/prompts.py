"""Prompts: random token ids, the same for the same seed, length and vocabulary. Used by benchmarks."""

from __future__ import annotations

import random


def random_prompt(seed: int, num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids from 10 on: below are the special ones of most vocabularies."""
    source = random.Random(seed)
    return tuple(source.randrange(10, vocab_size) for _ in range(num_tokens))
