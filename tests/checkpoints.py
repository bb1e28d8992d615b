"""Tiny random checkpoints of every family, on disk as they are published, each with its reference model.

transformers builds LLaMA, Mistral and Qwen itself; InternLM and InternLM2 are a LLaMA model's weights mapped into their
names and layout, and so is Meta's format. Used by the tests of converter, engine and command lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "llama3.1", "mistral", "internlm", "internlm2", "qwen2", "qwen3")
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def make_checkpoint(family: str, folder: Path, *, head_dim: int = 64, num_heads: int = 4, num_kv_heads: int = 2,
                    num_layers: int = 2, intermediate_size: int = 192, vocab_size: int = 320,
                    max_position_embeddings: int = 512, tie_word_embeddings: bool = False,
                    dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", seed: int = 0) -> PreTrainedModel:
    """Writes a checkpoint of one of FAMILIES with a byte-level tokenizer, and returns the same model in float32.

    num_kv_heads is ignored by InternLM 1, which has no grouped queries. dtype is that of the stored weights."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size, "hidden_size": num_heads * head_dim, "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers, "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim, "max_position_embeddings": max_position_embeddings, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": None, "tie_word_embeddings": tie_word_embeddings, "initializer_range": 0.08}
    torch.manual_seed(seed)
    model = _random_model(family, sizes).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if family == "internlm":
        _rewrite_config(folder, {"architectures": ["InternLMForCausalLM"], "model_type": "internlm", "bias": True,
                                 "rope_parameters": None, "head_dim": None, "attention_bias": None})
    if family == "internlm2":
        _rewrite_config(folder, {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False,
                                 "rope_parameters": None, "rope_theta": 1000000.0, "head_dim": None,
                                 "rope_scaling": {"type": "dynamic", "factor": 2.0}})
        _rewrite_weights(folder, lambda tensors: _internlm2_tensors(tensors, num_layers, num_kv_heads, head_dim))
    eos_token_ids = [2, SPECIAL_TOKENS.index("<|im_end|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_ids}))
    write_tokenizer(folder)
    return model.float()


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json: SPECIAL_TOKENS, then one token per byte (261 ids); no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>",
                                                              "unk_token": "<unk>"}))


def to_bin_shards(folder: Path, num_shards: int = 2) -> None:
    """Rewrites a checkpoint's safetensors files as pytorch_model-*.bin with an index."""
    tensors = _pop_weights(folder)
    weight_map = {}
    for number in range(num_shards):
        shard = f"pytorch_model-{number + 1:05d}-of-{num_shards:05d}.bin"
        names = list(tensors)[number::num_shards]
        torch.save({name: tensors[name] for name in names}, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def make_meta_checkpoint(folder: Path, model: PreTrainedModel, num_shards: int = 2, splits_vocabulary: bool = False
                         ) -> None:
    """Writes a LLaMA model in Meta's format; splits_vocabulary as from LLaMA 3 on, else the embedding's columns are."""
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    head_dim = config.hidden_size // config.num_attention_heads
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
        for ours, meta in _META_NAMES.items():
            name = name.replace(ours, meta)
        is_replicated = tensor.dim() == 1
        by_columns = name.endswith(("wo.weight", "w2.weight")) or ("tok_embeddings" in name and not splits_vocabulary)
        for shard, part in zip(shards, tensor.chunk(num_shards, dim=1 if by_columns else 0), strict=True):
            shard[name] = tensor.clone() if is_replicated else part.clone()
    for number, shard in enumerate(shards):
        torch.save({**shard, "rope.freqs": torch.zeros(head_dim // 2)}, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps({
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads, "norm_eps": config.rms_norm_eps, "vocab_size": -1,
        "rope_theta": config.rope_parameters["rope_theta"], "multiple_of": 256}))
    write_tokenizer(folder)


_META_NAMES = {"model.": "", "embed_tokens": "tok_embeddings", "lm_head": "output", "self_attn.q_proj": "attention.wq",
               "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
               "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
               "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
               "post_attention_layernorm": "ffn_norm"}


def _random_model(family: str, sizes: dict[str, Any]) -> PreTrainedModel:
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif family == "llama3.1":
        model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=_LLAMA3_ROPE))
    elif family == "internlm":
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        model = LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True))
    elif family == "internlm2":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000.0}
        model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=256))
    elif family == "qwen2":
        sizes.pop("head_dim")
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    elif family == "qwen3":
        sizes["hidden_size"] //= 2  # so that num_heads * head_dim is not the hidden size, as in published ones
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    else:
        raise ValueError(f"{family!r} is not one of {FAMILIES}")
    with torch.no_grad():  # norms of one and biases of zero would hide a mapping that mixes them up
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.1)
    return model


def _internlm2_tensors(tensors: Mapping[str, Tensor], num_layers: int, num_kv_heads: int, head_dim: int
                       ) -> dict[str, Tensor]:
    renamed = {"model.tok_embeddings.weight": tensors["model.embed_tokens.weight"],
               "model.norm.weight": tensors["model.norm.weight"]}
    if "lm_head.weight" in tensors:
        renamed["output.weight"] = tensors["lm_head.weight"]
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        groups = [tensors[f"{prefix}self_attn.{name}_proj.weight"].unflatten(0, (num_kv_heads, -1, head_dim))
                  for name in "qkv"]
        renamed[f"{prefix}attention.wqkv.weight"] = torch.cat(groups, dim=1).flatten(0, 2).contiguous()
        for theirs, ours in (("self_attn.o_proj", "attention.wo"), ("mlp.gate_proj", "feed_forward.w1"),
                             ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
                             ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            renamed[f"{prefix}{ours}.weight"] = tensors[f"{prefix}{theirs}.weight"]
    return renamed


def _pop_weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(file))
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    return tensors


def _rewrite_weights(folder: Path, change: Any) -> None:
    save_file(change(_pop_weights(folder)), folder / "model.safetensors", metadata={"format": "pt"})


def _rewrite_config(folder: Path, changes: Mapping[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
