"""Rotary embedding settings of a Hugging Face configuration, in each of the spellings in which they are published.

`rope_theta` with `rope_scaling` (type or rope_type) up to transformers 4, `rope_parameters` since transformers 5,
`rotary` in InternLM's own code. Used by base.py and meta.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config import ROPE_SCALING_TYPES, RopeConfig
from backend.errors import CheckpointError

_OUR_NAMES = {"default": "none", "origin": "none"}  # transformers' and InternLM's words for plain rotary embedding
_NUMBERS = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
            "scaling_factor": "factor"}


def is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def rope_config(file: Path, config: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """Raises CheckpointError, naming the type, for a scaling that is not supported."""
    settings: dict[str, Any] = {}
    for key in ("rotary", "rope_scaling", "rope_parameters"):  # from the oldest spelling to the newest, which wins
        value = config.get(key) or {}
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{file}: {key}={value!r} is not supported; it has to be a table")
        settings.update(value)
    scaling_type = str(settings.get("rope_type") or settings.get("type") or "none")
    scaling_type = _OUR_NAMES.get(scaling_type, scaling_type)
    for key in ("rope_theta", "base", "original_max_position_embeddings", *_NUMBERS):
        if not is_number_or_none(settings.get(key)):
            raise CheckpointError(f"{file}: {key} is {settings[key]!r}, but has to be a number; "
                                  "download the file again")
    if scaling_type not in ROPE_SCALING_TYPES or settings.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(f"{file}: rope scaling {scaling_type!r} is not supported; "
                              f"supported are {', '.join(ROPE_SCALING_TYPES)}, over whole heads")
    theta = settings.get("rope_theta") or config.get("rope_theta") or settings.get("base") or 10000.0
    if scaling_type == "none":
        return RopeConfig(dim=head_dim, theta=float(theta))
    numbers = {ours: float(settings[theirs]) for theirs, ours in _NUMBERS.items() if settings.get(theirs) is not None}
    # Dynamic NTK starts to scale beyond the positions that the model was trained for.
    original = settings.get("original_max_position_embeddings") or (
        max_position_embeddings if scaling_type == "dynamic" else 0)
    return RopeConfig(dim=head_dim, theta=float(theta), scaling_type=scaling_type,
                      original_max_position_embeddings=int(original), **numbers)
