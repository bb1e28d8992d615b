"""Tiny random models of transformers as the decoder's reference, and the same weights as a ModelSource."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from backend.config import EngineConfig, ModelConfig, RopeConfig

SIZES = {"vocab_size": 90, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
         "tie_word_embeddings": False, "attn_implementation": "eager"}
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
           "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@dataclass(frozen=True)
class WeightsSource:
    """A ModelSource over tensors in memory."""

    model: ModelConfig
    engine: EngineConfig
    weights: dict[str, Tensor]
    path: Path = Path("reference")
    tokenizer_dir: Path = Path("reference")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights.items()


def reference_model(family: str, **options: Any) -> PreTrainedModel:
    """A float32 model with every weight random, biases and norms included."""
    config_class, model_class = CLASSES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **options)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name:
                parameter.add_(1.0)
    return model


def source_of(model: PreTrainedModel, rope: RopeConfig | None = None, **engine: Any) -> WeightsSource:
    """The same weights under canonical names, and the configuration that fits them."""
    state = model.state_dict()
    config = model.config
    weights = {"tok_embeddings.weight": state["model.embed_tokens.weight"]}
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        weights[ours + "attention_norm.weight"] = state[theirs + "input_layernorm.weight"]
        for kind in ("weight", "bias"):
            if f"{attention}q_proj.{kind}" in state:
                weights[f"{ours}attention.w_qkv.{kind}"] = torch.cat(
                    [state[f"{attention}{part}_proj.{kind}"] for part in "qkv"])
            if f"{attention}o_proj.{kind}" in state:
                weights[f"{ours}attention.wo.{kind}"] = state[f"{attention}o_proj.{kind}"]
        for norm in ("q_norm", "k_norm"):
            if f"{attention}{norm}.weight" in state:
                weights[f"{ours}attention.{norm}.weight"] = state[f"{attention}{norm}.weight"]
        weights[ours + "ffn_norm.weight"] = state[theirs + "post_attention_layernorm.weight"]
        weights[ours + "feed_forward.w13.weight"] = torch.cat(
            [state[mlp + "gate_proj.weight"], state[mlp + "up_proj.weight"]])
        weights[ours + "feed_forward.w2.weight"] = state[mlp + "down_proj.weight"]
    weights |= {"norm.weight": state["model.norm.weight"], "output.weight": state["lm_head.weight"]}
    model_config = ModelConfig(
        model_name=config.model_type, vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads, head_dim=config.head_dim,
        intermediate_size=config.intermediate_size, norm_eps=config.rms_norm_eps,
        rope=rope or RopeConfig(dim=config.head_dim, theta=config.rope_parameters["rope_theta"]),
        max_position_embeddings=config.max_position_embeddings, bos_token_id=1, eos_token_ids=(2,), dtype="float32",
        attention_bias="layers.0.attention.w_qkv.bias" in weights, output_bias="layers.0.attention.wo.bias" in weights,
        qk_norm="layers.0.attention.q_norm.weight" in weights)
    defaults: dict[str, Any] = {"session_len": 128, "max_batch_size": 4, "block_size": 16, "device": "cpu"}
    return WeightsSource(model_config, EngineConfig(**(defaults | engine)), weights)
