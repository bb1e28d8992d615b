"""Attention with grouped queries over a paged KV cache: project, rotate, store, attend, project, add.

Rows of a batch come decodes first: those go through the decode kernel, the rest through the prefill kernel, and a
batch of one kind costs no split. Used by models/decoder.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.config import ModelConfig
from backend.distributed import TensorParallel
from backend.forward_batch import ForwardBatch
from backend.kernels import dispatch as kernels
from backend.kernels import reference
from backend.layers.linear import ColumnLinear, RowLinear
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import weight_format


class Attention(nn.Module):
    """Self-attention of one layer; this rank has H query heads and K key/value heads.

    layer              which of batch.kv_cache it owns
    use_fused_prefill  False: plain prefill attention that materialises scores
    Raises ConfigError where tp does not divide the heads."""

    def __init__(self, model: ModelConfig, layer: int, tp: TensorParallel, use_fused_prefill: bool) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = tp.split(model.num_heads, "num_heads")
        self.num_kv_heads = tp.split(model.num_kv_heads, "num_kv_heads")
        self.head_dim = model.head_dim
        self.scale = model.head_dim**-0.5
        self.paged_prefill = kernels.paged_prefill if use_fused_prefill else reference.paged_prefill
        q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        stored = weight_format(model)
        self.w_qkv = ColumnLinear(model.hidden_size, (q_size, kv_size, kv_size), model.attention_bias, tp, stored)
        self.wo = RowLinear(q_size, model.hidden_size, model.output_bias, tp, stored)
        self.is_dense = model.quant is None
        self.q_norm = RMSNorm(model.head_dim, model.norm_eps) if model.qk_norm else None
        self.k_norm = RMSNorm(model.head_dim, model.norm_eps) if model.qk_norm else None

    def forward(self, hidden: Tensor, norm: RMSNorm, rotary: Tensor, batch: ForwardBatch) -> Tensor:
        """hidden += attention(norm(hidden)); stores the new keys and values on the way.

        hidden  [T, hidden_size], changed in place and returned
        rotary  cos/sin table [P, 2, R/2] float32, one for all layers"""
        q, k, v = self.split_heads(self.w_qkv(hidden, norm))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.wo(self.attend(q, k, v, rotary, batch).flatten(1), hidden)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2K) * D] → views [T, H, D], [T, K, D], [T, K, D]."""
        heads = qkv.view(qkv.shape[0], -1, self.head_dim)
        return heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotary: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention over each row's whole context: q [T, H, D], k and v [T, K, D] → [T, H, D].

        Prefill rows are stored first: decode rows and other prefill rows may share the blocks that they fill. They
        attend first as well: on Hopper decode reads the cache before the kernel in front of it has ended, which must
        not be the one that stores."""
        cache = batch.kv_cache[self.layer]
        num_decodes = batch.num_decodes
        decodes, prefills = slice(num_decodes), slice(num_decodes, None)
        outputs = []
        if num_decodes < batch.context_lens.shape[0]:
            kernels.rotary_and_store(q[prefills], k[prefills], v[prefills], batch.positions[prefills], rotary, cache,
                                     batch.slot_mapping[prefills])
            outputs.append(self.paged_prefill(
                q[prefills], cache, batch.block_tables[prefills], batch.context_lens[prefills],
                batch.query_start[num_decodes:] - num_decodes, self.scale, batch.max_query_len, batch.max_context_len,
                batch.sum_context_len))
        if num_decodes:
            outputs.insert(0, kernels.paged_decode(
                q[decodes], k[decodes], v[decodes], batch.positions[decodes], rotary, cache,
                batch.slot_mapping[decodes], batch.block_tables[decodes], batch.context_lens[decodes], self.scale,
                after_dense=self.is_dense))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
