"""InternLM2 and 2.5: their own names, and q, k and v in one tensor, interleaved by KV head.

Rows of wqkv are [num_kv_heads, num_heads / num_kv_heads + 2, head_dim]: in each group the query heads, then the key
head, then the value head (InternLM's modeling_internlm2.py). Listed in canonical.py."""

from __future__ import annotations

from backend.config import ModelConfig
from converter.checkpoint import Checkpoint
from converter.families.base import CanonicalTensors, Family, SourceTensors, decoder_config
from converter.families.linear import Outputs, Runs, linear


def internlm2_tensors(take: SourceTensors, model: ModelConfig) -> CanonicalTensors:
    hidden, inner = model.hidden_size, model.intermediate_size
    q_rows, qkv_rows = model.num_heads * model.head_dim, (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    embedding = take("model.tok_embeddings.weight", model.vocab_size, hidden)
    yield "tok_embeddings.weight", embedding
    for layer in range(model.num_layers):
        source, ours = f"model.layers.{layer}", f"layers.{layer}"
        attention, feed_forward = f"{source}.attention", f"{source}.feed_forward"
        yield f"{ours}.attention_norm.weight", take(f"{source}.attention_norm.weight", hidden)
        wqkv = [Outputs(f"{attention}.wqkv", qkv_rows, _q_k_v(model))]
        yield from linear(take, f"{ours}.attention.w_qkv", hidden, wqkv, model.attention_bias)
        wo = [Outputs(f"{attention}.wo", hidden)]
        yield from linear(take, f"{ours}.attention.wo", q_rows, wo, model.output_bias)
        yield f"{ours}.ffn_norm.weight", take(f"{source}.ffn_norm.weight", hidden)
        gate_up = [Outputs(f"{feed_forward}.{part}", inner) for part in ("w1", "w3")]
        yield from linear(take, f"{ours}.feed_forward.w13", hidden, gate_up)
        yield from linear(take, f"{ours}.feed_forward.w2", inner, [Outputs(f"{feed_forward}.w2", hidden)])
    yield "norm.weight", take("model.norm.weight", hidden)
    yield "output.weight", embedding if take.is_tied else take("output.weight", model.vocab_size, hidden)


def _q_k_v(model: ModelConfig) -> Runs:
    """Where wqkv, groups of (queries, key, value), has all queries, all keys, all values."""
    dim, queries = model.head_dim, model.num_heads // model.num_kv_heads
    q, k, v = [], [], []
    for group in range(model.num_kv_heads):
        start = group * (queries + 2) * dim
        key, value, end = start + queries * dim, start + (queries + 1) * dim, start + (queries + 2) * dim
        q.append((start, key))
        k.append((key, value))
        v.append((value, end))
    return (*q, *k, *v)


def _internlm2_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    has_bias = bool(checkpoint.config.get("bias", False))
    return decoder_config(checkpoint, model_name, dtype, attention_bias=has_bias, output_bias=has_bias)


INTERNLM2 = Family("InternLM2/2.5", ("InternLM2ForCausalLM",), "model.tok_embeddings.weight", "output.weight",
                   _internlm2_config, internlm2_tensors)
