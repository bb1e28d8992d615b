"""Shapes: models of published sizes with random weights, made where they are loaded, for measuring speed.

m7 is Llama-2-7B's shape, g8 InternLM2.5-7B's. Used by the benchmarks of a GPU and by GPU tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig, RopeConfig

STD = 0.02
MAX_POSITIONS = 131_072  # more than the published models know: random weights know none, and long contexts have room


def _shape(name: str, vocab_size: int, intermediate_size: int, num_kv_heads: int) -> ModelConfig:
    return ModelConfig(
        model_name=name, vocab_size=vocab_size, hidden_size=4096, num_layers=32, num_heads=32,
        num_kv_heads=num_kv_heads, head_dim=128, intermediate_size=intermediate_size, norm_eps=1e-5,
        rope=RopeConfig(128), max_position_embeddings=MAX_POSITIONS, bos_token_id=1,
        eos_token_ids=(2,), dtype="bfloat16")


SHAPES = {"m7": _shape("m7", 32000, 11008, 32), "g8": _shape("g8", 92544, 14336, 8)}


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A ModelSource of normal random weights (norms are 1), the same for the same seed and device."""

    model: ModelConfig
    engine: EngineConfig
    seed: int = 0
    path: Path = Path("random")
    tokenizer_dir: Path = Path("random")

    def tensors(self) -> Iterator[tuple[str, RandomTensor]]:
        """Every weight once, in the order of the layers."""
        for number, (name, shape) in enumerate(_weights(self.model)):
            yield name, RandomTensor(shape, self.model.dtype, self.seed * 100_003 + number)


@dataclass(frozen=True, slots=True)
class RandomTensor:
    shape: tuple[int, ...]
    dtype: str
    seed: int

    def __getitem__(self, index: Any) -> Tensor:
        dtype = getattr(torch, self.dtype)
        if len(self.shape) == 1:
            return torch.ones(self.shape, dtype=dtype)[index]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator(device).manual_seed(self.seed)
        return torch.empty(self.shape, dtype=dtype, device=device).normal_(0, STD, generator=generator)[index]


def _weights(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = model.hidden_size
    yield "tok_embeddings.weight", (model.vocab_size, hidden)
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}."
        yield prefix + "attention_norm.weight", (hidden,)
        yield prefix + "attention.w_qkv.weight", ((model.num_heads + 2 * model.num_kv_heads) * model.head_dim, hidden)
        yield prefix + "attention.wo.weight", (hidden, model.num_heads * model.head_dim)
        yield prefix + "ffn_norm.weight", (hidden,)
        yield prefix + "feed_forward.w13.weight", (2 * model.intermediate_size, hidden)
        yield prefix + "feed_forward.w2.weight", (hidden, model.intermediate_size)
    yield "norm.weight", (hidden,)
    yield "output.weight", (model.vocab_size, hidden)
