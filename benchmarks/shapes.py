"""Shapes: models of published sizes with random weights, made where they are loaded, for measuring speed.

m7 is Llama-2-7B's shape, g8 InternLM2.5-7B's; either in bf16 or as an AWQ checkpoint. Used by the benchmarks of a GPU
and by GPU tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from backend.config import EngineConfig, ModelConfig, QuantConfig, RopeConfig
from backend.memory_plan import linear_shapes

STD = 0.02
MAX_POSITIONS = 131_072  # more than the published models know: random weights know none, and long contexts have room
WEIGHTS = ("bf16", "awq")
GROUP_SIZE = 128  # what nearly all AWQ checkpoints have
ZERO_POINTS = 0x8888_8888 - (1 << 32)  # eight of 8, as an int32
# The root mean square of (q - 8), where nibbles q are uniform but that 0 becomes 8: with -8 among them weights would
# not be 0 on average, and the activations of g8 would grow from layer to layer beyond float16.
INT4_RMS = math.sqrt(sum((q - 8) ** 2 for q in range(1, 16)) / 16)


def _shape(name: str, vocab_size: int, intermediate_size: int, num_kv_heads: int) -> ModelConfig:
    return ModelConfig(
        model_name=name, vocab_size=vocab_size, hidden_size=4096, num_layers=32, num_heads=32,
        num_kv_heads=num_kv_heads, head_dim=128, intermediate_size=intermediate_size, norm_eps=1e-5,
        rope=RopeConfig(128), max_position_embeddings=MAX_POSITIONS, bos_token_id=1,
        eos_token_ids=(2,), dtype="bfloat16")


SHAPES = {"m7": _shape("m7", 32000, 11008, 32), "g8": _shape("g8", 92544, 14336, 8)}


def with_weights(model: ModelConfig, weights: str) -> ModelConfig:
    """A shape in one of WEIGHTS; awq is in groups of 128 with fp16 activations, and named for it: m7_awq."""
    if weights == "bf16":
        return model
    return dataclasses.replace(model, model_name=f"{model.model_name}_awq", dtype="float16",
                               quant=QuantConfig(GROUP_SIZE))


def weights_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --weights."""
    return click.option("--weights", type=click.Choice(WEIGHTS), default="bf16", show_default=True,
                        help="How the shape's weights are stored; awq: 4 bits in groups of 128, fp16 activations."
                        )(command)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A ModelSource of normal random weights (norms are 1; quantised ones are uniform), the same for the same seed and
    device."""

    model: ModelConfig
    engine: EngineConfig
    seed: int = 0
    path: Path = Path("random")
    tokenizer_dir: Path = Path("random")

    def tensors(self) -> Iterator[tuple[str, RandomTensor]]:
        """Every weight once, in the order of the layers."""
        for number, (name, shape) in enumerate(_weights(self.model)):
            yield name, RandomTensor(name.rpartition(".")[2], shape, self.model.dtype, self.seed * 100_003 + number)


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """kind: the last part of a canonical name, weight, qweight, qzeros or scales."""

    kind: str
    shape: tuple[int, ...]
    model_dtype: str
    seed: int

    def __getitem__(self, index: Any) -> Tensor:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator(device).manual_seed(self.seed)
        if self.kind == "qweight":
            words = torch.empty(self.shape, dtype=torch.int32, device=device)
            words.random_(-(1 << 31), 1 << 31, generator=generator)
            is_zero = ~(words | words >> 1 | words >> 2 | words >> 3) & 0x1111_1111  # of each nibble, its lowest bit
            return (words | is_zero << 3)[index]
        if self.kind == "qzeros":
            return torch.full(self.shape, ZERO_POINTS, dtype=torch.int32, device=device)[index]
        if self.kind == "scales":
            return torch.full(self.shape, STD / INT4_RMS, dtype=torch.float16, device=device)[index]
        dtype = getattr(torch, self.model_dtype)
        if len(self.shape) == 1:
            return torch.ones(self.shape, dtype=dtype)[index]
        return torch.empty(self.shape, dtype=dtype, device=device).normal_(0, STD, generator=generator)[index]


def _weights(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = model.hidden_size
    yield "tok_embeddings.weight", (model.vocab_size, hidden)
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}."
        yield prefix + "attention_norm.weight", (hidden,)
        for name, (out_features, in_features) in linear_shapes(model).items():
            if name == "feed_forward.w13":
                yield prefix + "ffn_norm.weight", (hidden,)
            yield from _linear(model, prefix + name, out_features, in_features)
    yield "norm.weight", (hidden,)
    yield "output.weight", (model.vocab_size, hidden)


def _linear(model: ModelConfig, name: str, out_features: int, in_features: int
            ) -> Iterator[tuple[str, tuple[int, int]]]:
    if model.quant is None:
        yield f"{name}.weight", (out_features, in_features)
        return
    num_groups = in_features // model.quant.group_size
    yield f"{name}.qweight", (in_features, out_features // 8)
    yield f"{name}.qzeros", (num_groups, out_features // 8)
    yield f"{name}.scales", (num_groups, out_features)
