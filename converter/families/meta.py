"""LLaMA as Meta publishes it: consolidated.*.pth with params.json, and the interleaved rotary order of q and k.

What params.json leaves open comes from the tensors (vocabulary, feed-forward size) or from which LLaMA it is (context).
Listed in canonical.py."""

from __future__ import annotations

from backend.config import ModelConfig, RopeConfig
from backend.errors import CheckpointError
from converter.checkpoint import Checkpoint
from converter.families.base import CanonicalTensors, Family, SourceTensors, integer
from converter.lazy_tensor import HalfSplitHeads, stack_rows

_LLAMA_3_2_DIMS = (2048, 3072)  # its factor of 32 cannot be told from LLaMA 3.1's 8


def meta_tensors(take: SourceTensors, model: ModelConfig) -> CanonicalTensors:
    hidden, inner = model.hidden_size, model.intermediate_size
    q_rows, kv_rows = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    yield "tok_embeddings.weight", take("tok_embeddings.weight", model.vocab_size, hidden)
    for layer in range(model.num_layers):
        ours = f"layers.{layer}"
        attention, feed_forward = f"{ours}.attention", f"{ours}.feed_forward"
        q = HalfSplitHeads(take(f"{attention}.wq.weight", q_rows, hidden), model.head_dim)
        k = HalfSplitHeads(take(f"{attention}.wk.weight", kv_rows, hidden), model.head_dim)
        yield f"{ours}.attention_norm.weight", take(f"{ours}.attention_norm.weight", hidden)
        yield f"{attention}.w_qkv.weight", stack_rows([q, k, take(f"{attention}.wv.weight", kv_rows, hidden)])
        yield f"{attention}.wo.weight", take(f"{attention}.wo.weight", hidden, q_rows)
        yield f"{ours}.ffn_norm.weight", take(f"{ours}.ffn_norm.weight", hidden)
        yield f"{feed_forward}.w13.weight", stack_rows([take(f"{feed_forward}.w1.weight", inner, hidden),
                                                        take(f"{feed_forward}.w3.weight", inner, hidden)])
        yield f"{feed_forward}.w2.weight", take(f"{feed_forward}.w2.weight", hidden, inner)
    yield "norm.weight", take("norm.weight", hidden)
    yield "output.weight", take("output.weight", model.vocab_size, hidden)


def _meta_config(checkpoint: Checkpoint, model_name: str, dtype: str) -> ModelConfig:
    params = checkpoint.config
    for key in ("moe", "moe_args", "lora_args", "quantization_args", "vision_chunk_size"):
        if params.get(key):
            raise CheckpointError(f"{checkpoint.config_file}: {key} is not supported; only LLaMA 1, 2, 3 and 3.1 are")
    hidden_size, num_heads = integer(checkpoint, "dim"), integer(checkpoint, "n_heads")
    theta, norm_eps = float(params.get("rope_theta") or 10000.0), float(params.get("norm_eps") or 1e-5)
    head_dim = hidden_size // num_heads
    # params.json does not say the context length; each release has its own. LLaMA 1 alone has the smaller norm_eps.
    context = {10000.0: 2048 if norm_eps < 1e-5 else 4096, 500000.0: 8192, 1e6: 16384}.get(theta, 4096)
    rope = RopeConfig(dim=head_dim, theta=theta)
    if params.get("use_scaled_rope"):
        if hidden_size in _LLAMA_3_2_DIMS:
            raise CheckpointError(f"{checkpoint.config_file}: LLaMA 3.2 does not tell its rope scaling in "
                                  "this format; use its Hugging Face format")
        context = 131072
        # Meta's code for LLaMA 3.1 holds these numbers, its params.json does not.
        rope = RopeConfig(dim=head_dim, theta=theta, scaling_type="llama3", factor=8.0, low_freq_factor=1.0,
                          high_freq_factor=4.0, original_max_position_embeddings=8192)
    return ModelConfig(
        model_name=model_name,
        vocab_size=_rows(checkpoint, "tok_embeddings.weight"),
        hidden_size=hidden_size,
        num_layers=integer(checkpoint, "n_layers"),
        num_heads=num_heads,
        num_kv_heads=params.get("n_kv_heads") or num_heads,
        head_dim=head_dim,
        intermediate_size=_rows(checkpoint, "layers.0.feed_forward.w1.weight"),
        norm_eps=norm_eps,
        rope=rope,
        max_position_embeddings=context,
        bos_token_id=None,  # known to the tokenizer only, as is the end of sequence
        eos_token_ids=(),
        dtype=dtype,
    )


def _rows(checkpoint: Checkpoint, name: str) -> int:
    if name not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.folder}: tensor {name} is in no file; download the checkpoint again")
    return checkpoint.tensors[name].shape[0]


META = Family("LLaMA (Meta's format)", (), "tok_embeddings.weight", "output.weight", _meta_config, meta_tensors,
              ("rope.freqs",))
