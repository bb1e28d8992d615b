"""Checkpoint: a Hugging Face folder of a shape with random weights, for engines that read files; and the names there.

A LLaMA checkpoint in safetensors, dense or AWQ, one file per layer, made on the device; with a tokenizer of one word
per id, because some engines want one. Written once and kept. Used by throughput.py and start.py; the names also by
cpu.py and by tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from backend.config import EngineConfig, ModelConfig
from benchmarks.shapes import RandomModel

INDEX = "model.safetensors.index.json"  # written last: a folder that has it is complete


def ensure_checkpoint(model: ModelConfig, folder: Path) -> Path:
    """The folder, with the checkpoint of `model` in it; it is made where it is missing."""
    if (folder / INDEX).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(model), indent=2), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<1>", "eos_token": "<2>", "unk_token": "<0>"}))
    words = {f"<{token_id}>": token_id for token_id in range(model.vocab_size)}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<0>"))
    tokenizer.decoder = decoders.ByteLevel()  # one that Millrace decodes with
    tokenizer.save(str(folder / "tokenizer.json"))
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(_files(model)):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return folder


def _files(model: ModelConfig) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file, under their names there: one file per layer, and those outside of layers."""
    source = RandomModel(model, EngineConfig(session_len=1))
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in source.tensors():
        layer = name.split(".")[1] if name.startswith("layers.") else ""
        if layer and layer not in files:
            yield from files.values()
            files = {layer: {}}
        parts = hugging_face_parts(model, name, tensor[:].cpu())
        files.setdefault(layer, {}).update({place: part.clone() for place, part in parts.items()})
    yield from files.values()


def hugging_face_parts(model: ModelConfig, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A canonical tensor under LLaMA's names there, where q, k, v and gate, up are tensors of their own."""
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    layer, module, kind = re.fullmatch(r"layers\.(\d+)\.(.+)\.(\w+)", name).groups()
    output_axis = 0 if kind in ("weight", "bias") else -1
    kv_size, inner = model.num_kv_heads * model.head_dim, model.intermediate_size
    outputs = {
        "attention.w_qkv": {"self_attn.q_proj": model.num_heads * model.head_dim, "self_attn.k_proj": kv_size,
                            "self_attn.v_proj": kv_size},
        "feed_forward.w13": {"mlp.gate_proj": inner, "mlp.up_proj": inner},
    }.get(module) or {_WHOLE[module]: tensor.shape[output_axis]}
    each = sum(outputs.values()) // tensor.shape[output_axis]  # 8 in words of 4-bit weights
    parts = tensor.split([count // each for count in outputs.values()], dim=output_axis)
    return {f"model.layers.{layer}.{part_name}.{kind}": part for part_name, part in zip(outputs, parts, strict=True)}


_OUTSIDE = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight"}
_WHOLE = {"attention_norm": "input_layernorm", "attention.wo": "self_attn.o_proj",
          "ffn_norm": "post_attention_layernorm", "feed_forward.w2": "mlp.down_proj"}


def _config(model: ModelConfig) -> dict[str, object]:
    quantization = {} if model.quant is None else {"quantization_config": {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": model.quant.group_size, "zero_point": True}}
    return {
        **quantization,
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": model.dtype,
        "vocab_size": model.vocab_size, "hidden_size": model.hidden_size, "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads, "num_key_value_heads": model.num_kv_heads, "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size, "rms_norm_eps": model.norm_eps, "rope_theta": model.rope.theta,
        "max_position_embeddings": model.max_position_embeddings, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": False, "bos_token_id": model.bos_token_id, "eos_token_id": model.eos_token_ids[0]}
