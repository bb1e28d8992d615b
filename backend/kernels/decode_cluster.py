"""Decode attention over a 16-bit KV cache in CUDA C++ (decode_cluster.cu), by clusters of blocks: Hopper's way.

Triton's kernel merges a row's splits through memory, and whoever merges waits for partial sums, a counter and its own
reads, which takes longer than reading the keys and values of 2,048 tokens. Here the blocks of a cluster merge theirs
through their shared memory. One row of g8's shape takes 3.7 us instead of 7.1 with 512 tokens, 5.8 instead of 10.7 with
2,048 and 38 instead of 43 with 32,768; 16 rows of 512 take 12 instead of 17, and of 1,024 21 instead of 25; from 64
rows of 1,024 on both read at the memory's speed. Slower are m7's 32 KV heads with one row of 8,192 tokens (40 us,
Triton's 38) and with 32,768 tokens among three rows of 512 (146, Triton's 136; bf16, one H200, 2026-11-21). What each
size takes:

    python -m benchmarks.kernels --shape g8 --only decode_attention

Used by decode_attention.py, which checks the shapes and has that kernel for what is not made for this."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import cuda_source
from backend.kernels.capability import is_hopper, num_multiprocessors
from backend.kernels.cuda_source import CudaKernel
from backend.kernels.paged_kv import LOG2_E

SOURCE = Path(__file__).with_suffix(".cu")
HEAD_DIMS = (64, 128)
TILE = 16  # tokens
MAX_GROUP = 8  # query heads of a KV head
MIN_KV_HEADS = 2  # one row's single KV head is one cluster, which is slow over long contexts


@dataclass(frozen=True, slots=True)
class Tiling:
    """A cluster has `cluster` blocks of `warps` warps, each of which has `stages` tiles under way.

    shares  of all tokens, that a multiprocessor works on at a time: see find_work in the source. 0: a row's KV head
            has a whole cluster"""

    cluster: int
    warps: int
    stages: int
    shares: float = 0


# By rows times KV heads: from how many on which tiling is used. Of those measured for 1 to 256 rows of 512 to 32,768
# tokens on an H200 the best, or near it, that does not leave one long row among short ones to a few blocks. 32,768
# tokens among 63 rows of 1,024 take 118 us (Triton's kernel 121), and 177 in clusters of two, which are 1 to 2 % faster
# where all are alike; with shares they take 105, but 64 rows of 1,024 alone 79 instead of 71.
TILINGS = ((2048, Tiling(2, 4, 2)), (129, Tiling(4, 4, 2)), (17, Tiling(8, 4, 2, 1.5)), (9, Tiling(8, 4, 3)),
           (0, Tiling(8, 8, 2)))


def fits(q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, cache: LayerKv) -> bool:
    """Whether this kernel is made for such a batch: whole heads rotated, up to 8 of a KV head, whose 16-byte pieces can
    be loaded. q [B, H, D], k and v [B, K, D]."""
    _, num_heads, head_dim = q.shape
    return (cache.scales is None and q.dtype in (torch.float16, torch.bfloat16) and cache.k.dtype == q.dtype
            and head_dim in HEAD_DIMS and 2 * cos_sin.shape[2] == head_dim and cache.block_size % TILE == 0
            and num_heads // cache.num_kv_heads <= MAX_GROUP and cache.num_kv_heads >= MIN_KV_HEADS
            and all(_is_aligned(tensor) for tensor in (q, k, v)) and runs_on(q.device))


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether this kernel runs there: clusters are Hopper's."""
    return cuda_source.is_available(device) and is_hopper(device)


def paged_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float) -> Tensor:
    """See reference.paged_decode, for what fits."""
    num_rows, num_heads, head_dim = q.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tiling = _tiling(num_rows * cache.num_kv_heads)
    kernel = _kernel(head_dim, num_heads, cache.num_kv_heads, cache.block_size, q.dtype == torch.float16, tiling,
                     q.device)
    pointers = (q, k, v, positions, cos_sin, cache.k, cache.v, slot_mapping, block_tables, context_lens, output)
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), block_tables.stride(0))
    kernel.launch(_num_clusters(num_rows, cache.num_kv_heads, tiling, q.device) * tiling.cluster, [
        *((tensor.data_ptr(), ctypes.c_void_p) for tensor in pointers),
        *((stride, ctypes.c_longlong) for stride in strides), (scale * LOG2_E, ctypes.c_float),
        (num_rows, ctypes.c_int)])
    return output


def _tiling(num_units: int) -> Tiling:
    return next(tiling for least, tiling in TILINGS if num_units >= least)


def _num_shares(tiling: Tiling, num_kv_heads: int, device: torch.device) -> int:
    return int(tiling.shares * num_multiprocessors(device)) // num_kv_heads


def _num_clusters(num_rows: int, num_kv_heads: int, tiling: Tiling, device: torch.device) -> int:
    """As many as there can be work for, whatever the lengths are: a KV head has one block, or less than two a share."""
    num_units, num_shares = num_rows * num_kv_heads, _num_shares(tiling, num_kv_heads, device)
    if num_shares == 0:
        return num_units
    num_blocks = num_kv_heads * (2 * num_shares + num_rows)
    unused = num_rows * (tiling.cluster - 1) if num_kv_heads % tiling.cluster else 0  # behind a row's last KV head
    return min(num_units, (num_blocks + unused) // tiling.cluster)


def _shared_bytes(tiling: Tiling, head_dim: int, group: int) -> int:
    """The size of `Shared` in the source."""
    ring, query = tiling.warps * tiling.stages * 2 * TILE * head_dim * 2, MAX_GROUP * head_dim * 2
    received = group * head_dim // 4 * 32
    return -(-(ring + query + received + 2 * tiling.warps * MAX_GROUP * 4 + 8) // 16) * 16


def _is_aligned(heads: Tensor) -> bool:
    """Whether pieces of 16 bytes can be loaded from it."""
    return heads.data_ptr() % 16 == 0 and heads.stride(0) % 8 == 0 and heads.stride(1) % 8 == 0 and heads.stride(2) == 1


@functools.cache
def _kernel(head_dim: int, num_heads: int, num_kv_heads: int, block_size: int, is_half: bool, tiling: Tiling,
            device: torch.device) -> CudaKernel:
    macros = {"HEAD_DIM": head_dim, "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "BLOCK_SIZE": block_size,
              "IS_HALF": int(is_half)}
    variants = {each: {**macros, "CLUSTER": each.cluster, "WARPS": each.warps, "STAGES": each.stages,
                       "NUM_SHARES": _num_shares(each, num_kv_heads, device),
                       "SHARED_BYTES": _shared_bytes(each, head_dim, num_heads // num_kv_heads)}
                for each in (tiling, *(tiling for _, tiling in TILINGS))}
    cuda_source.compile_together(SOURCE, list(variants.values()), device)  # others are wanted soon, for more rows
    return cuda_source.load(SOURCE, "decode_cluster", variants[tiling], device, 32 * tiling.warps,
                            variants[tiling]["SHARED_BYTES"])
