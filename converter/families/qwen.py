"""Qwen2, Qwen2.5 and Qwen3: LLaMA's names, with biases on q, k and v (2, 2.5) or a norm per head on q and k (3).

Listed in canonical.py."""

from __future__ import annotations

from backend.config import ModelConfig
from converter.checkpoint import Checkpoint
from converter.families.base import Family, decoder_config
from converter.families.llama import EMBEDDING, OUTPUT, llama_tensors


def _qwen2_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    return decoder_config(checkpoint, model_name, dtype, attention_bias=True,
                          sliding_window=_sliding_window(checkpoint))


def _qwen3_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    has_bias = bool(checkpoint.config.get("attention_bias", False))
    return decoder_config(checkpoint, model_name, dtype, head_dim=checkpoint.config.get("head_dim", 128),
                          attention_bias=has_bias, output_bias=has_bias, qk_norm=True,
                          sliding_window=_sliding_window(checkpoint))


def _sliding_window(checkpoint: Checkpoint) -> int | None:
    """The window where at least one layer uses it: only layers from max_window_layers on do."""
    config = checkpoint.config
    if not config.get("use_sliding_window", False):
        return None
    first = config.get("max_window_layers", 28)  # transformers' default
    return config.get("sliding_window", 4096) if first < config.get("num_hidden_layers", 0) else None


QWEN2 = Family("Qwen2/2.5", ("Qwen2ForCausalLM",), EMBEDDING, OUTPUT, _qwen2_config, llama_tensors)
QWEN3 = Family("Qwen3", ("Qwen3ForCausalLM",), EMBEDDING, OUTPUT, _qwen3_config, llama_tensors)
