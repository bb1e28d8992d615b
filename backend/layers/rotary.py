"""Rotary position embedding (Su et al., 2021): the table of cosines and sines for each position.

The frequencies follow Hugging Face's definitions of the scaling types, so that checkpoints mean the same here.
"dynamic" (NTK) is fixed once, by the engine's session_len: up to max_position_embeddings it is the plain rotary
embedding; above, theta is what Hugging Face's formula gives for a sequence of session_len tokens. A key then depends
on its position alone, never on how long the sequence has grown, which is what makes cached prefixes valid and results
independent of the schedule. Used by models/decoder.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backend.config import RopeConfig


def rotary_table(rope: RopeConfig, num_positions: int, session_len: int, max_position_embeddings: int) -> Tensor:
    """cos and sin of position times frequency, [num_positions, 2, rope.dim / 2] float32, on the CPU."""
    frequencies = rotary_frequencies(rope, session_len, max_position_embeddings)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotary_frequencies(rope: RopeConfig, session_len: int, max_position_embeddings: int) -> Tensor:
    """Radians per position, [rope.dim / 2] float32, highest first."""
    theta = rope.theta
    if rope.scaling_type == "dynamic" and session_len > max_position_embeddings:
        stretch = rope.factor * session_len / max_position_embeddings - (rope.factor - 1)
        theta *= stretch ** (rope.dim / (rope.dim - 2))
    frequencies = 1.0 / theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    if rope.scaling_type == "linear":
        return frequencies / rope.factor
    if rope.scaling_type == "llama3":
        return _llama3(rope, frequencies)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended linearly in turns per context."""
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / rope.factor)
