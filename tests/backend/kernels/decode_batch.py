"""A paged batch in which every sequence has one new token, as the qkv projection leaves it, and its attention.

The new token's slot holds NaN like everything else that is not cached, until a kernel stores there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.forward_batch import LayerKv
from tests.backend.kernels.paged_batch import NO_BLOCK, PagedBatch, make_batch, moved, naive_attention, put


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """q, k and v are views of one fused tensor; `paged` holds what is expected: rotated queries and whole contexts."""

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    cos_sin: Tensor
    cache: LayerKv
    slot_mapping: Tensor
    paged: PagedBatch

    @property
    def arguments(self) -> tuple[LayerKv | Tensor | float, ...]:
        """What paged_decode takes."""
        return (self.q, self.k, self.v, self.positions, self.cos_sin, self.cache, self.slot_mapping,
                self.paged.block_tables, self.paged.context_lens, self.paged.scale)

    def expected(self) -> Tensor:
        return naive_attention(self.paged)


def make_decode(context_lens: list[int], rotated: int | None = None, *, seed: int = 0, **options) -> DecodeBatch:
    """Options are make_batch's; `rotated` is R, by default all of D. Context length 0 makes a padding row."""
    paged = make_batch(context_lens, seed=seed, **options)
    cache = paged.cache
    num_kv_heads, block_size, head_dim = cache.num_kv_heads, cache.block_size, cache.head_dim
    num_rows, num_heads, _ = paged.q.shape
    device, dtype = paged.q.device, paged.q.dtype
    random = torch.Generator().manual_seed(seed + 1)
    qkv = torch.randn(num_rows, num_heads + 2 * num_kv_heads, head_dim, generator=random).to(dtype)
    positions = (torch.tensor(context_lens) - 1).clamp_min(0)
    angles = torch.rand(max(context_lens) + 1, (rotated or head_dim) // 2, generator=random) * 6
    cos_sin = torch.stack((angles.cos(), angles.sin()), dim=1)
    blocks = paged.block_tables.cpu().long()[torch.arange(num_rows), positions // block_size]
    dummy = next(block for block in range(cache.num_blocks) if block not in paged.block_tables)
    blocks[blocks == NO_BLOCK] = dummy
    offsets = positions % block_size

    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    rotated_q, rotated_k = (rotate(heads, cos_sin[positions]) for heads in (q, k))
    read = [put(moved(cache, "cpu"), which, blocks, offsets, heads) for which, heads in enumerate((rotated_k, v))]
    for row, length in enumerate(context_lens):
        if length:
            paged.keys[row][-1], paged.values[row][-1] = read[0][row], read[1][row]
    cache = moved(cache, "cpu")
    for tensor in (cache.k, cache.v) if cache.scales is None else (cache.scales,) if cache.format.is_online else ():
        tensor[blocks, :, offsets] = torch.nan
    paged.q.copy_(rotated_q)
    q, k, v = qkv.to(device).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return DecodeBatch(q, k, v, positions.to(device), cos_sin.to(device), moved(cache, device),
                       (blocks * block_size + offsets).to(device), paged)


def rotate(heads: Tensor, cos_sin: Tensor) -> Tensor:
    """Heads [T, H, D] turned by cos_sin [T, 2, R/2] in float64, pair by pair as complex numbers; in heads' dtype."""
    half = cos_sin.shape[-1]
    wide = heads.double()
    turned = torch.complex(wide[..., :half], wide[..., half:2 * half])
    turned = turned * torch.complex(*cos_sin.double().unbind(1))[:, None]
    return torch.cat((turned.real, turned.imag, wide[..., 2 * half:]), dim=-1).to(heads.dtype)
