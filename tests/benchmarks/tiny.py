"""A model of a few thousand parameters, for benchmarks to run on in tests."""

from __future__ import annotations

import dataclasses

from backend.config import ModelConfig, RopeConfig
from benchmarks.shapes import with_weights

TINY = ModelConfig(
    model_name="tiny", vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    intermediate_size=48, norm_eps=1e-5, rope=RopeConfig(16), max_position_embeddings=4096, bos_token_id=1,
    eos_token_ids=(2,), dtype="bfloat16")
# The same kind with weights that groups of 128 divide.
TINY_AWQ = with_weights(dataclasses.replace(TINY, hidden_size=256, num_heads=8, intermediate_size=384, head_dim=32,
                                            rope=RopeConfig(32)), "awq")
