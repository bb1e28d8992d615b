"""Reference kernels in plain torch: the CPU's implementation and the oracle of the Triton kernels' tests at once.

Same signatures as the Triton files. Attention and norms compute in float32 whatever the inputs are (float64 stays
float64). Few torch calls and no Python loop over tokens, since on small models a call costs more than its arithmetic;
reads lengths on the host, so nothing here can be captured in a CUDA graph. Cache entries outside a row's context are
never used, not even multiplied by zero. Used by dispatch.py, by the attention layer for use_context_fmha=0, tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import kv_quantisation, shapes
from backend.kernels.w4_weight import W4Weight, dequantise

# Decode gathers this many tokens' KV at a time: enough to amortise the calls, few enough to stay in a core's cache.
DECODE_GROUP_TOKENS = 2048
# Prefill materialises at most about this many scores at a time (1 GiB of float32).
PREFILL_SCORES = 1 << 28
# Queries per tile of prefill: keys after a tile's last query are not computed, which saves up to half of the work.
PREFILL_QUERIES = 256


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; also for query and key heads, [T, H, D] with weight [D].

    x [T, X], weight [X]. Returns [T, X] in x's dtype. Raises ShapeError. Zhang and Sennrich, 2019."""
    shapes.check_norm(x, weight)
    return F.rms_norm(x, weight.shape, weight, eps)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's product: silu(gate) · up. gate_up [T, 2I], gate | up. Returns [T, I]. Raises ShapeError."""
    shapes.check_gate_up(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
           is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """y = norm(x) Wᵀ + b, with what stands before and after it in a decoder layer, so that a kernel can fuse them.

    x         [T, X]
    weight    [Y, X];  bias [Y]
    norm      weight [X] and eps of an RMSNorm that x goes through first
    is_gated  y is gate | up, and the result silu(gate) · up, [T, Y/2]
    residual  [T, Y] (or Y/2): the result is added to it in place, and it is returned
    Returns [T, Y] (or Y/2) in x's dtype. Raises ShapeError."""
    shapes.check_linear(x, weight, bias, norm, is_gated, residual)
    y = F.linear(x if norm is None else rms_norm(x, *norm), weight, bias)
    if is_gated:
        y = silu_and_mul(y)
    return y if residual is None else residual.add_(y)


def linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
              is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """`linear` with a weight of four bits, which is dequantised at every call. Raises ShapeError. Lin et al., 2023."""
    shapes.check_linear_w4(x, weight, bias, norm, is_gated, residual)
    return linear(x, dequantise(weight, x.dtype), bias, norm=norm, is_gated=is_gated, residual=residual)


def logits(x: Tensor, weight: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    """norm(x) Wᵀ in float32: x [R, X], weight [V, X], norm as in `linear`. Returns [R, V]. Raises ShapeError."""
    return linear(x, weight, norm=norm).float()


def rotary_and_store(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                     slot_mapping: Tensor) -> None:
    """Rotates queries and keys, half-split as in Hugging Face, and writes each token's key and value into its slot.

    q             [T, H, D]            rotated in place; any strides: a view of the fused qkv tensor works
    k, v          [T, K, D]            likewise; k is rotated in place or left as it is
    positions     [T] int64            rows of cos_sin
    cos_sin       [P, 2, R/2] float32  cosines, then sines; values from R on are not rotated
    cache         written in place, in its format
    slot_mapping  [T] int64            block · S + offset; -1 marks a padding token, which is not stored
    Raises ShapeError. Su et al., 2021."""
    shapes.check_rotary_and_store(q, k, v, positions, cos_sin, cache, slot_mapping)
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).unbind(2)  # each [T, 1, R/2]
    for heads in (q, k):
        first, second = heads[..., : 2 * cos_sin.shape[2]].chunk(2, dim=-1)
        first_sin = first * sin  # kept, because the next line overwrites first
        torch.addcmul(first * cos, second, sin, value=-1, out=first)
        torch.addcmul(first_sin, second, cos, out=second)
    if slot_mapping.numel() and int(slot_mapping.min()) < 0:
        kept = slot_mapping >= 0
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    block, offset = slot_mapping // cache.block_size, slot_mapping % cache.block_size
    for heads, stored, which in ((k, cache.k, 0), (v, cache.v, 1)):
        if cache.format.num_bits:
            heads, scales = kv_quantisation.quantise(heads, cache, which)
            if cache.format.is_online:
                cache.scales[block, :, offset, which] = scales
        stored[block, :, offset] = heads


def paged_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float, *,
                 after_dense: bool = False) -> Tensor:
    """rotary_and_store of one new token per sequence, and its attention over its paged KV.

    q, k, v, positions, cos_sin, cache, slot_mapping   see rotary_and_store, T = B; q and k may be rotated in place
    block_tables  [B, M] int32   entries beyond the context are not read
    context_lens  [B] int32      tokens, including the new one; 0 marks a padding row
    scale         factor of the scores, usually D ** -0.5
    after_dense   q, k, v are of a linear layer with 16-bit weights: no other result, perhaps another kernel
    Every row with a context has a slot of its own, which no other row's context holds: rows run side by side.
    Returns [B, H, D] in q's dtype; padding rows are undefined, and whether they are stored is too.
    Raises ShapeError if H is not a multiple of K."""
    shapes.check_decode(q, k, v, positions, cos_sin, cache, slot_mapping, block_tables, context_lens)
    rotary_and_store(q, k, v, positions, cos_sin, cache, slot_mapping)
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = cache.block_size, cache.num_kv_heads
    # A KV head's queries form one matrix.
    output = torch.empty((len(q), num_kv_heads, num_heads // num_kv_heads, head_dim), dtype=q.dtype, device=q.device)
    grouped = q.view(output.shape)
    lens = context_lens.tolist()
    group = max(1, DECODE_GROUP_TOKENS // max(1, *lens))
    for start in range(0, len(lens), group):
        rows = slice(start, start + group)
        longest = max(lens[rows])
        if longest == 0:
            continue
        places, unit, mask = _head_blocks(cache, block_tables[rows, : -(-longest // block_size)]), block_size, None
        if min(lens[rows]) < longest:  # gather single tokens
            tokens = places[..., None] * block_size + torch.arange(block_size, device=q.device)
            tokens, valid = tokens.flatten(2)[..., :longest], torch.arange(longest, device=q.device)
            valid = (valid < context_lens[rows, None])[:, None]
            # Shorter rows repeat their first token, so that what is masked is finite; padding rows repeat the cache's.
            places, unit, mask = tokens.where(valid, tokens[..., :1] * valid[..., :1]), 1, valid[:, :, None]
        keys, values = _gather(cache, places, unit, longest, q.dtype)
        output[rows] = F.scaled_dot_product_attention(grouped[rows], keys, values, attn_mask=mask, scale=scale)
    return output.view(q.shape)


def paged_prefill(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor, query_start: Tensor,
                  scale: float, max_query_len: int, max_context_len: int, sum_context_len: int) -> Tensor:
    """Causal attention of many new tokens per sequence; their keys and values are in the cache already.

    q                [T, H, D]       row b's queries are the last positions of its context (chunked prefill)
    block_tables     [B, M] int32    entries beyond the context are not read
    context_lens     [B] int32       cached + new tokens
    query_start      [B + 1] int32   row b owns queries [query_start[b], query_start[b + 1]); it may begin after 0
    scale            factor of the scores, usually D ** -0.5
    max_query_len, max_context_len   bounds known on the host; the reference reads the lengths themselves
    sum_context_len  likewise: at least the sum of context_lens
    Returns [T, H, D] in q's dtype; tokens that no row owns are undefined. Materialises the scores, a tile at a time.
    Raises ShapeError if H is not a multiple of K."""
    shapes.check_attention(q, cache, block_tables, context_lens)
    dtype = torch.promote_types(q.dtype, torch.float32)
    num_heads, num_kv_heads = q.shape[1], cache.num_kv_heads
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    bounds = query_start.tolist()
    for row, context_len in enumerate(context_lens.tolist()):
        num_queries = bounds[row + 1] - bounds[row]
        if num_queries == 0:
            continue
        blocks = _head_blocks(cache, block_tables[row, None, : -(-context_len // cache.block_size)])
        keys, values = _gather(cache, blocks, cache.block_size, context_len, dtype)
        keys, values = keys[0].transpose(1, 2), values[0]  # [K, D, context], [K, context, D]
        first_position = context_len - num_queries
        tile = max(1, min(PREFILL_QUERIES, PREFILL_SCORES // (num_heads * context_len)))
        for start in range(0, num_queries, tile):
            stop = min(start + tile, num_queries)
            tokens = slice(bounds[row] + start, bounds[row] + stop)
            seen = first_position + stop  # keys that the tile's last query may see
            grouped = q[tokens].unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3).to(dtype)  # [K, H/K, tile, D]
            scores = (grouped * scale).flatten(1, 2) @ keys[..., :seen]
            future = torch.ones(stop - start, seen, dtype=torch.bool, device=q.device).triu_(first_position + start + 1)
            scores = scores.unflatten(1, (-1, stop - start)).masked_fill_(future, -torch.inf).softmax(-1).flatten(1, 2)
            attended = (scores @ values[:, :seen]).unflatten(1, (-1, stop - start))  # [K, H/K, tile, D]
            output[tokens] = attended.permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)
    return output


def _head_blocks(cache: LayerKv, blocks: Tensor) -> Tensor:
    """Where the heads of blocks [b, m] lie, in the cache seen as [N · K, S, ·]: [b, K, m]."""
    return blocks[:, None] * cache.num_kv_heads + torch.arange(cache.num_kv_heads, device=blocks.device)[:, None]


def _gather(cache: LayerKv, places: Tensor, unit: int, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first num_tokens keys and values, each [b, K, num_tokens, D] in dtype, of places [b, K, m] of the cache seen
    as [·, unit, ·]."""
    def gather(stored: Tensor) -> Tensor:
        units = stored.view(-1, unit, *stored.shape[3:]).index_select(0, places.flatten())
        return units.view(*places.shape[:2], -1, *stored.shape[3:])[:, :, :num_tokens]

    keys, values = gather(cache.k), gather(cache.v)
    if not cache.format.num_bits:
        return keys.to(dtype), values.to(dtype)
    scales = gather(cache.scales) if cache.format.is_online else cache.scales[:, None]
    return tuple(kv_quantisation.dequantise(stored, scales[..., which, :], cache.format, dtype)
                 for which, stored in enumerate((keys, values)))
