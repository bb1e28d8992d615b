"""Model: InternLM2 in plain torch, as the trainer and its evaluation need it; the product has its own decoder.

Parameters carry the names and layouts of a published InternLM2 repository (`wqkv` rows per KV head: its query
heads, then key, then value), so a checkpoint is the state dict. `save` and `load` own the folder's files.
Used by train.py and evaluate.py. Architecture after InternLM2 (Cai et al., 2024)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Shape of the demo model; the defaults are the shape that is published."""

    vocab_size: int = 3072
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 896
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def as_internlm2(self) -> dict[str, object]:
        """The config.json of a published InternLM2 repository, without remote code."""
        return {
            "architectures": ["InternLM2ForCausalLM"],
            "attn_implementation": "eager",
            "bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "model_type": "internlm2",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": 2,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }


class Past(list[Tensor]):
    """One layer's keys and values so far, each [B, K, T, D]; empty before the prompt."""


class InternLM2ForCausalLM(nn.Module):
    """Token ids [B, T] to logits: `forward` of whole rows, padded on the right; `continue_from` of one more part."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        for layer in self.model.layers:  # residual branches start small, as in GPT-2
            for parameter in (layer.attention.wo.weight, layer.feed_forward.w2.weight):
                nn.init.normal_(parameter, std=0.02 / (2 * config.num_layers) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocab_size] of every position."""
        return self.output(self.model(tokens, [None] * self.config.num_layers))

    def continue_from(self, past: list[Past], tokens: Tensor) -> Tensor:
        """Logits [B, vocab_size] after `tokens`, which follow those in `past` (a `Past` per layer, extended here).

        With an empty `past`, tokens are a prompt [B, T]; otherwise one token a row [B, 1]."""
        return self.output(self.model(tokens, past)[:, -1])


class InternLM2Model(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angles = torch.outer(torch.arange(config.max_positions).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)  # [max_positions, head_dim / 2]
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, past: Sequence[Past | None]) -> Tensor:
        start = past[0][0].shape[2] if past[0] else 0
        positions = slice(start, start + tokens.shape[1])
        cos, sin = self.cos[positions], self.sin[positions]
        hidden = self.tok_embeddings(tokens)
        for layer, layer_past in zip(self.layers, past, strict=True):
            hidden = layer(hidden, cos, sin, layer_past)
        return self.norm(hidden)


class DecoderLayer(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), cos, sin, past)
        return hidden + self.feed_forward(self.ffn_norm(hidden))


class Attention(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.num_kv_heads, self.head_dim = config.num_kv_heads, config.head_dim
        self.group_size = config.num_heads // config.num_kv_heads
        heads = config.num_heads + 2 * config.num_kv_heads
        self.wqkv = nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> Tensor:
        batch, length, _ = hidden.shape
        grouped = self.wqkv(hidden).view(batch, length, self.num_kv_heads, self.group_size + 2, self.head_dim)
        query = grouped[..., : self.group_size, :].flatten(2, 3).transpose(1, 2)  # [B, H, T, D]
        key, value = (grouped[..., self.group_size + i, :].transpose(1, 2) for i in (0, 1))  # [B, K, T, D]
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            if past:
                key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
            past[:] = (key, value)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1, enable_gqa=True)
        return self.wo(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)  # gate
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)  # up
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)  # down

    def forward(self, hidden: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(hidden)) * self.w3(hidden))


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [B, heads, T, D], the two halves of D forming the pairs, as in Hugging Face."""
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def save(model: InternLM2ForCausalLM, folder: Path, num_shards: int = 2) -> None:
    """Write config.json, generation_config.json, bf16 shards of about equal size and their index."""
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    total = sum(tensor.nbytes for tensor in weights.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    written = 0
    for name, tensor in weights.items():
        shards[written * num_shards // total][name] = tensor
        written += tensor.nbytes
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file_name = f"model-{i:05d}-of-{num_shards:05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file_name)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", model.config.as_internlm2())
    im_end = _special_id(folder, "<|im_end|>")
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, im_end], "pad_token_id": 2})


def load(folder: Path, dtype: torch.dtype) -> InternLM2ForCausalLM:
    """The model of a folder that `save` wrote, computing in `dtype`; rotary angles stay in fp32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = InternLM2ForCausalLM(
        DemoConfig(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["hidden_size"] // config["num_attention_heads"],
            config["intermediate_size"],
            config["max_position_embeddings"],
            config["rope_theta"],
            config["rms_norm_eps"],
        )
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    weights = {}
    for file_name in sorted(set(index["weight_map"].values())):
        weights |= load_file(folder / file_name)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return model.eval()


def _special_id(folder: Path, text: str) -> int:
    added = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    return next(int(id_) for id_, entry in added.items() if entry["content"] == text)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
