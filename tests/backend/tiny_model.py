"""A tiny random model in memory: a ModelSource for tests of anything that runs steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig, RopeConfig


@dataclass(frozen=True)
class TinySource:
    """A ModelSource whose weights are drawn from a seed, layer by layer, whenever they are read."""

    model: ModelConfig
    engine: EngineConfig
    seed: int = 0
    path: Path = field(default=Path("tiny"))
    tokenizer_dir: Path = field(default=Path("tiny"))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for name, shape in tensor_shapes(self.model).items():
            values = torch.randn(shape, generator=generator) * 0.3
            yield name, values + 1.0 if name.endswith("norm.weight") else values


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name → stored shape of every weight of a model."""
    hidden, head = model.hidden_size, model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (model.vocab_size, hidden)}
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}."
        qkv = (model.num_heads + 2 * model.num_kv_heads) * head
        shapes[prefix + "attention_norm.weight"] = (hidden,)
        shapes[prefix + "attention.w_qkv.weight"] = (qkv, hidden)
        if model.attention_bias:
            shapes[prefix + "attention.w_qkv.bias"] = (qkv,)
        if model.qk_norm:
            shapes[prefix + "attention.q_norm.weight"] = (head,)
            shapes[prefix + "attention.k_norm.weight"] = (head,)
        shapes[prefix + "attention.wo.weight"] = (hidden, model.num_heads * head)
        if model.output_bias:
            shapes[prefix + "attention.wo.bias"] = (hidden,)
        shapes[prefix + "ffn_norm.weight"] = (hidden,)
        shapes[prefix + "feed_forward.w13.weight"] = (2 * model.intermediate_size, hidden)
        shapes[prefix + "feed_forward.w2.weight"] = (hidden, model.intermediate_size)
    return shapes | {"norm.weight": (hidden,), "output.weight": (model.vocab_size, hidden)}


def tiny_source(**overrides: Any) -> TinySource:
    """A 2-layer model with 4 heads, 2 KV heads and 96 tokens of vocabulary; overrides by field name, of ModelConfig
    or EngineConfig, or `seed`. The end id is 2."""
    model: dict[str, Any] = {
        "model_name": "tiny", "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "norm_eps": 1e-5, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_ids": (2,), "dtype": "float32"}
    engine: dict[str, Any] = {"session_len": 256, "max_batch_size": 8, "max_prefill_tokens": 64,
                              "cache_max_entry_count": 64, "block_size": 16, "device": "cpu"}
    seed = overrides.pop("seed", 0)
    engine_fields = {field.name for field in fields(EngineConfig)}
    for name, value in overrides.items():
        (engine if name in engine_fields and name != "dtype" else model)[name] = value
    model.setdefault("rope", RopeConfig(dim=model["head_dim"]))
    return TinySource(ModelConfig(**model), EngineConfig(**engine), seed)
