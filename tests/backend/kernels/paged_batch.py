"""A paged KV cache for tests, with the dense sequences it holds and attention written as the formula says.

Everything outside the sequences is NaN, and block tables point nowhere beyond the contexts, so that a kernel that reads
too far gives NaN or faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_BLOCK = 1_000_003


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Queries are views of a fused qkv tensor; `keys` and `values` are per sequence, [context, K, D]."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    query_start: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    scale: float

    @property
    def max_context_len(self) -> int:
        return int(self.context_lens.max())

    @property
    def max_query_len(self) -> int:
        return int(self.query_start.diff().max())


def make_batch(context_lens: list[int], query_lens: list[int] | None = None, *, num_heads: int = 4,
               num_kv_heads: int = 2, head_dim: int = 64, block_size: int = 16, dtype: torch.dtype = torch.float32,
               device: str = "cpu", seed: int = 0) -> PagedBatch:
    """A batch with shuffled blocks. query_lens defaults to one query per sequence, as in decode."""
    query_lens = query_lens or [1] * len(context_lens)
    random = torch.Generator().manual_seed(seed)
    used = [-(-length // block_size) for length in context_lens]
    num_blocks = sum(used) + 2
    order = torch.randperm(num_blocks, generator=random)
    tables = torch.full((len(used), max(used) + 1), NO_BLOCK, dtype=torch.int32)
    caches = [torch.full((num_blocks, block_size, num_kv_heads, head_dim), torch.nan) for _ in range(2)]
    dense: tuple[list[Tensor], list[Tensor]] = ([], [])
    taken = 0
    for row, length in enumerate(context_lens):
        tables[row, : used[row]] = order[taken : taken + used[row]]
        taken += used[row]
        token = torch.arange(length)
        block = tables[row].long()[token // block_size]
        for cache, sequences in zip(caches, dense, strict=True):
            rows = torch.randn(length, num_kv_heads, head_dim, generator=random).to(dtype)
            cache[block, token % block_size] = rows.float()
            sequences.append(rows)
    fused = torch.randn(sum(query_lens), (num_heads + 2 * num_kv_heads) * head_dim, generator=random)
    q = fused.to(device, dtype)[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    return PagedBatch(q, caches[0].to(device, dtype), caches[1].to(device, dtype), tables.to(device),
                      torch.tensor(context_lens, dtype=torch.int32, device=device), starts.to(device),
                      dense[0], dense[1], head_dim**-0.5)


def naive_attention(batch: PagedBatch) -> Tensor:
    """softmax(scale · q kᵀ) v in float64, one query and head at a time, over the keys at or before the query."""
    q = batch.q.double().cpu()
    output = torch.empty_like(q)
    group = q.shape[1] // batch.keys[0].shape[1]
    bounds = batch.query_start.tolist()
    for row, (keys, values) in enumerate(zip(batch.keys, batch.values, strict=True)):
        for token in range(bounds[row], bounds[row + 1]):
            seen = len(keys) - (bounds[row + 1] - 1 - token)
            for head in range(q.shape[1]):
                key, value = (dense[:seen, head // group].double() for dense in (keys, values))
                output[token, head] = torch.softmax(batch.scale * (key @ q[token, head]), dim=0) @ value
    return output
