"""Decoder: the one LLaMA-shaped model (Touvron et al., 2023), with the options of its relatives.

Module names are the canonical weight names (`layers.0.attention.w_qkv.weight`). Made and filled by worker, called with
a ForwardBatch; knows nothing of scheduling or sampling."""

from __future__ import annotations

from torch import Tensor, nn

from backend.config import EngineConfig, ModelConfig
from backend.distributed import TensorParallel
from backend.forward_batch import ForwardBatch
from backend.layers.attention import Attention
from backend.layers.embedding import OutputHead, TokenEmbedding
from backend.layers.mlp import FeedForward
from backend.layers.rms_norm import RMSNorm
from backend.layers.rotary import rotary_table
from backend.layers.weight_format import weight_format


class Decoder(nn.Module):
    """Embedding, layers, norm, output head. Declared without memory; worker/weight_loader.py fills it.

    Raises ConfigError where tp does not divide the model."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.tok_embeddings = TokenEmbedding(model.vocab_size, model.hidden_size, tp)
        self.layers = nn.ModuleList(DecoderLayer(model, layer, tp, engine.use_context_fmha)
                                    for layer in range(model.num_layers))
        self.norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.output = OutputHead(model.hidden_size, model.vocab_size, tp)
        rotary = rotary_table(model.rope, engine.session_len, engine.session_len, model.max_position_embeddings)
        self.register_buffer("rotary", rotary, persistent=False)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [R, vocab_size] float32 of the tokens at batch.logits_indices."""
        return self.output(self.hidden(batch), self.norm)

    def hidden(self, batch: ForwardBatch) -> Tensor:
        """What the last norm and the output head are given of these tokens, [R, hidden_size]."""
        hidden = self.tok_embeddings(batch.token_ids)
        for layer in self.layers:
            hidden = layer(hidden, self.rotary, batch)
        return hidden[batch.logits_indices] if len(batch.logits_indices) < len(hidden) else hidden  # else all sample


class DecoderLayer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)). Each norm is fused into the linear layer after it, each
    addition into the one before it."""

    def __init__(self, model: ModelConfig, layer: int, tp: TensorParallel, use_fused_prefill: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.attention = Attention(model, layer, tp, use_fused_prefill)
        self.ffn_norm = RMSNorm(model.hidden_size, model.norm_eps)
        self.feed_forward = FeedForward(model.hidden_size, model.intermediate_size, tp, weight_format(model))

    def forward(self, hidden: Tensor, rotary: Tensor, batch: ForwardBatch) -> Tensor:
        """hidden [T, hidden_size] is changed in place and returned."""
        hidden = self.attention(hidden, self.attention_norm, rotary, batch)
        return self.feed_forward(hidden, self.ffn_norm)
