"""Forward batch: the tensors of one step, each with its shape. Built by worker, read by models, layers and kernels.

Shape letters used in every docstring of backend/:
  T  new tokens in the step          B  sequences (rows of the step)
  H  query heads on this rank        K  key/value heads on this rank       D  head_dim
  N  KV blocks                       S  block size in tokens               M  longest block table of the step"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backend.kv_format import KvFormat


@dataclass(frozen=True, slots=True)
class LayerKv:
    """The KV cache of one layer: a token's head is a row of k and one of v, and a block has its heads one by one.

    k, v    [N, K, S, D] in the model's dtype; quantised: uint8, where int4 has [N, K, S, D/2] bytes, each with value d
            in its lower half and value d + D/2 in its upper one
    scales  scale and zero of k, then of v: [N, K, S, 2, 2] float16 online, [K, 2, 2] float32 calibrated, else None"""

    format: KvFormat
    k: Tensor
    v: Tensor
    scales: Tensor | None

    @property
    def num_blocks(self) -> int:
        return self.k.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def block_size(self) -> int:
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        return self.k.shape[3] * (2 if self.format is KvFormat.INT4 else 1)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Rows are ordered decodes first: rows [0, num_decodes) have one new token each, the rest are prefill chunks.

    token_ids       [T] int64
    positions       [T] int64      place of each token in its sequence, from 0
    slot_mapping    [T] int64      block * S + offset; where each new token's KV goes
    block_tables    [B, M] int32   entries beyond a row's context are 0 and never read
    context_lens    [B] int32      cached + new tokens
    query_start     [B + 1] int32  row b owns tokens [query_start[b], query_start[b + 1])
    logits_indices  [R] int64      tokens whose logits are wanted: the last of each sampling row, in row order
    kv_cache        per layer
    num_decodes, max_query_len, sum_context_len (both over the prefill rows; 0 without any), max_context_len: host
    integers."""

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    context_lens: Tensor
    query_start: Tensor
    logits_indices: Tensor
    kv_cache: list[LayerKv]
    num_decodes: int
    max_query_len: int
    max_context_len: int
    sum_context_len: int
