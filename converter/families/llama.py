"""LLaMA 1, 2, 3 and 3.1, Vicuna, Mistral and InternLM 1: one layout in Hugging Face's spelling.

InternLM 1 is LLaMA with biases on q, k, v and o under its own name; Mistral adds a sliding window. The mapping of
names also serves qwen.py. Listed in canonical.py."""

from __future__ import annotations

from backend.config import ModelConfig
from converter.checkpoint import Checkpoint
from converter.families.base import CanonicalTensors, Family, SourceTensors, decoder_config
from converter.families.linear import Outputs, linear

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def llama_tensors(take: SourceTensors, model: ModelConfig) -> CanonicalTensors:
    """Canonical tensors of every checkpoint that names its weights like transformers' LlamaForCausalLM."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q_rows, kv_rows = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    embedding = take(EMBEDDING, model.vocab_size, hidden)
    yield "tok_embeddings.weight", embedding
    for layer in range(model.num_layers):
        source, ours = f"model.layers.{layer}", f"layers.{layer}"
        attention, feed_forward = f"{source}.self_attn", f"{source}.mlp"
        yield f"{ours}.attention_norm.weight", take(f"{source}.input_layernorm.weight", hidden)
        qkv = [Outputs(f"{attention}.{part}_proj", q_rows if part == "q" else kv_rows) for part in "qkv"]
        yield from linear(take, f"{ours}.attention.w_qkv", hidden, qkv, model.attention_bias)
        if model.qk_norm:
            yield f"{ours}.attention.q_norm.weight", take(f"{attention}.q_norm.weight", model.head_dim)
            yield f"{ours}.attention.k_norm.weight", take(f"{attention}.k_norm.weight", model.head_dim)
        output = [Outputs(f"{attention}.o_proj", hidden)]
        yield from linear(take, f"{ours}.attention.wo", q_rows, output, model.output_bias)
        yield f"{ours}.ffn_norm.weight", take(f"{source}.post_attention_layernorm.weight", hidden)
        gate_up = [Outputs(f"{feed_forward}.{part}_proj", inner) for part in ("gate", "up")]
        yield from linear(take, f"{ours}.feed_forward.w13", hidden, gate_up)
        yield from linear(take, f"{ours}.feed_forward.w2", inner, [Outputs(f"{feed_forward}.down_proj", hidden)])
    yield "norm.weight", take("model.norm.weight", hidden)
    yield "output.weight", embedding if take.is_tied else take(OUTPUT, model.vocab_size, hidden)


def _llama_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    has_bias = bool(checkpoint.config.get("attention_bias", False))
    return decoder_config(checkpoint, model_name, dtype, attention_bias=has_bias, output_bias=has_bias)


def _internlm_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    has_bias = bool(checkpoint.config.get("bias", True))
    return decoder_config(checkpoint, model_name, dtype, attention_bias=has_bias, output_bias=has_bias)


def _mistral_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    window = checkpoint.config.get("sliding_window", 4096)  # transformers' default where the key is absent
    return decoder_config(checkpoint, model_name, dtype, sliding_window=window)


LLAMA = Family("LLaMA 1/2/3/3.1, Vicuna", ("LlamaForCausalLM", "LLaMAForCausalLM"), EMBEDDING, OUTPUT,
               _llama_config, llama_tensors)
INTERNLM = Family("InternLM", ("InternLMForCausalLM",), EMBEDDING, OUTPUT, _internlm_config, llama_tensors)
MISTRAL = Family("Mistral", ("MistralForCausalLM",), EMBEDDING, OUTPUT, _mistral_config, llama_tensors)
