"""A paged KV cache for tests, with the dense sequences it holds and attention written as the formula says.

Everything outside the sequences is NaN, and block tables point nowhere beyond the contexts, so that a kernel that reads
too far gives NaN or faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kv_format import KvFormat

NO_BLOCK = 1_000_003


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Queries are views of a fused qkv tensor; `keys` and `values` are per sequence, [context, K, D], as they are read
    from the cache."""

    q: Tensor
    cache: LayerKv
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
    def prefill_arguments(self) -> tuple[LayerKv | Tensor | float | int, ...]:
        """What paged_prefill takes."""
        return (self.q, self.cache, self.block_tables, self.context_lens, self.query_start, self.scale,
                int(self.query_start.diff().max()), self.max_context_len, int(self.context_lens.sum()))


def make_batch(context_lens: list[int], query_lens: list[int] | None = None, *, num_heads: int = 4,
               num_kv_heads: int = 2, head_dim: int = 64, block_size: int = 16, dtype: torch.dtype = torch.float32,
               device: str = "cpu", seed: int = 0, kv: KvFormat = KvFormat.AS_MODEL) -> PagedBatch:
    """A batch with shuffled blocks. query_lens defaults to one query per sequence, as in decode."""
    query_lens = query_lens or [1] * len(context_lens)
    random = torch.Generator().manual_seed(seed)
    used = [-(-length // block_size) for length in context_lens]
    num_blocks = sum(used) + 2
    order = torch.randperm(num_blocks, generator=random)
    tables = torch.full((len(used), max(used) + 1), NO_BLOCK, dtype=torch.int32)
    cache = poisoned_cache(kv, num_blocks, num_kv_heads, block_size, head_dim, dtype, random)
    dense: tuple[list[Tensor], list[Tensor]] = ([], [])
    taken = 0
    for row, length in enumerate(context_lens):
        tables[row, : used[row]] = order[taken : taken + used[row]]
        taken += used[row]
        token = torch.arange(length)
        block = tables[row].long()[token // block_size]
        for which, sequences in enumerate(dense):
            heads = torch.randn(length, num_kv_heads, head_dim, generator=random).to(dtype)
            sequences.append(put(cache, which, block, token % block_size, heads))
    fused = torch.randn(sum(query_lens), (num_heads + 2 * num_kv_heads) * head_dim, generator=random)
    q = fused.to(device, dtype)[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    return PagedBatch(q, moved(cache, device), tables.to(device),
                      torch.tensor(context_lens, dtype=torch.int32, device=device), starts.to(device),
                      dense[0], dense[1], head_dim**-0.5)


def poisoned_cache(kv: KvFormat, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int,
                   dtype: torch.dtype, random: torch.Generator) -> LayerKv:
    """NaN everywhere; where it is quantised, any bytes with scales and zeros of NaN, or with calibrated ones."""
    rows = num_blocks, num_kv_heads, block_size
    if not kv.num_bits:
        return LayerKv(kv, *(torch.full((*rows, head_dim), torch.nan, dtype=dtype) for _ in range(2)), None)
    size = *rows, head_dim * kv.num_bits // 8
    stored = [torch.randint(0, 256, size, dtype=torch.uint8, generator=random) for _ in range(2)]
    scales = torch.full((*rows, 2, 2), torch.nan, dtype=torch.float16)
    if not kv.is_online:
        scale = (4 + torch.rand(num_kv_heads, 2, generator=random)) / 127
        scales = torch.stack((scale, -128 * scale), -1)
    return LayerKv(kv, *stored, scales)


def put(cache: LayerKv, which: int, block: Tensor, offset: Tensor, heads: Tensor) -> Tensor:
    """Stores heads [T, K, D] as keys (which = 0) or values (1) and returns what is read from there, as the formula
    says: one token and head at a time."""
    stored = (cache.k, cache.v)[which]
    if not cache.format.num_bits:
        stored[block, :, offset] = heads
        return heads
    top = 2**cache.format.num_bits - 1
    read = torch.empty(heads.shape, dtype=torch.float64)
    for token, tensor in enumerate(heads.double()):
        for head, values in enumerate(tensor):
            place = block[token], head, offset[token]
            if cache.format.is_online:
                low, high = values.min(), values.max()
                scale = ((high - low) / top).half() if high > low else torch.tensor(1.0)
                cache.scales[place][which] = torch.stack((scale.half(), low.half()))
                scale, zero = scale.double(), low.half().double()
            else:
                scale, zero = cache.scales[head, which].double()
            levels = ((values - zero) / scale).round().clamp(0, top)
            read[token, head] = levels * scale + zero
            levels = levels.to(torch.uint8)
            if cache.format is KvFormat.INT4:
                half = len(levels) // 2
                levels = levels[:half] + 16 * levels[half:]
            stored[place] = levels
    return read


def as_model(k: Tensor, v: Tensor) -> LayerKv:
    """A cache in the model's dtype, of tensors [N, K, S, D]."""
    return LayerKv(KvFormat.AS_MODEL, k, v, None)


def wide(cache: LayerKv) -> LayerKv:
    """Whose values a reference in float64 reads as they are."""
    return cache if cache.format.num_bits else as_model(cache.k.double(), cache.v.double())


def moved(cache: LayerKv, device: str) -> LayerKv:
    """A copy on the device."""
    tensors = (None if tensor is None else tensor.to(device, copy=True) for tensor in (cache.k, cache.v, cache.scales))
    return LayerKv(cache.format, *tensors)


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
