"""Decode attention over a quantised KV cache in CUDA C++ (decode_quantised.cu), where it reads at the memory's speed.

Triton's kernel takes values through shared memory to the layout that its products need, which costs what the smaller
cache saves. Used by decode_attention.py, which checks the shapes and has that kernel for what is not made for this."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import cuda_source
from backend.kernels.capability import num_multiprocessors
from backend.kernels.cuda_source import CudaKernel
from backend.kernels.paged_kv import LOG2_E

SOURCE = Path(__file__).with_suffix(".cu")
HEAD_DIMS = (64, 128)
HEADS_TILE = 8  # query heads of a block, which share a KV head
MAX_SPLITS = 32  # of a row, which one warp merges
MIN_SPLIT_TOKENS = 64  # shorter splits cost more to merge than they save
RAGGED_SHARES = 16  # a row of more than this share of all tokens is split even where the rows alone fill the device
MIN_COUNTERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut.

    tile           tokens that a warp loads at a time
    warps          of a block
    blocks_per_sm  that a multiprocessor runs at the same time, by registers"""

    tile: int
    warps: int
    blocks_per_sm: int


# By the bits of a value: from how many (row, head tile) a multiprocessor on which tiling is the best, or near it, of
# those measured for 1 to 512 rows of 700 to 8,192 tokens on an H200. A block of one warp has nobody to wait for at its
# ends; larger ones cut few rows into fewer splits.
TILINGS = {8: ((12, Tiling(16, 1, 16)), (0, Tiling(16, 4, 4))),
           4: ((12, Tiling(16, 1, 16)), (3, Tiling(64, 2, 4)), (0, Tiling(64, 4, 2)))}


def fits(q: Tensor, cache: LayerKv) -> bool:
    """Whether this kernel is made for such a cache. q [B, H, D]."""
    return (cache.scales is not None and q.dtype in (torch.float16, torch.bfloat16) and q.shape[2] in HEAD_DIMS
            and cache.block_size % 16 == 0 and cuda_source.is_available(q.device))


def paged_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float) -> Tensor:
    """See reference.paged_decode, for what fits."""
    num_rows, num_heads, head_dim = q.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    bits = cache.format.num_bits
    head_tiles = cache.num_kv_heads * -(-num_heads // cache.num_kv_heads // HEADS_TILE)
    tiling = _tiling(num_rows * head_tiles, bits, num_multiprocessors(q.device))
    resident = max(1, tiling.blocks_per_sm * num_multiprocessors(q.device) // head_tiles)
    # As in decode_attention.py: all splits should be resident, a row's last one is half empty, rows may be ragged.
    num_shares = max(resident - num_rows // 2, min(resident, RAGGED_SHARES))
    num_items = num_shares + num_rows - 1  # a row's last split may be short
    partial = torch.empty((num_items, num_heads, head_dim), dtype=torch.float32, device=q.device)
    log_weights = torch.empty((num_items, num_heads), dtype=torch.float32, device=q.device)
    kernel = _kernel(head_dim, num_heads, cache.num_kv_heads, cache.block_size, cos_sin.shape[2], bits,
                     cache.format.is_online, tiling, q.dtype == torch.float16, q.device)
    pointers = (q, k, v, positions, cos_sin, cache.k, cache.v, cache.scales, slot_mapping, block_tables, context_lens,
                output, partial, log_weights, finished_splits(q.device, num_rows * head_tiles))
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), block_tables.stride(0))
    # As in decode_attention.py, blocks that run together have the heads of the same tokens, but for a single row.
    counts = (num_rows, num_items, num_shares, MIN_SPLIT_TOKENS, int(num_rows > 1))
    kernel.launch(num_items * head_tiles, [
        *((tensor.data_ptr(), ctypes.c_void_p) for tensor in pointers),
        *((stride, ctypes.c_longlong) for stride in strides), *((count, ctypes.c_int) for count in counts),
        (scale * LOG2_E, ctypes.c_float)])
    return output


def finished_splits(device: torch.device, count: int) -> Tensor:
    """Counters of the finished splits of each row and head tile, at least `count`. 0 between launches."""
    return _counters(device, max(MIN_COUNTERS, 1 << (count - 1).bit_length()))


@functools.cache
def _counters(device: torch.device, count: int) -> Tensor:
    """Never freed, because CUDA graphs know them."""
    return torch.zeros(count, dtype=torch.int32, device=device)


def _tiling(num_units: int, bits: int, num_multiprocessors: int) -> Tiling:
    return next(tiling for least, tiling in TILINGS[bits] if num_units >= least * num_multiprocessors)


@functools.cache
def _kernel(head_dim: int, num_heads: int, num_kv_heads: int, block_size: int, half: int, bits: int, is_online: bool,
            tiling: Tiling, is_half: bool, device: torch.device) -> CudaKernel:
    macros = {"HEAD_DIM": head_dim, "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "BLOCK_SIZE": block_size,
              "HALF": half, "BITS": bits, "ONLINE": int(is_online), "MAX_SPLITS": MAX_SPLITS, "TILE": tiling.tile,
              "WARPS": tiling.warps, "BLOCKS_PER_SM": tiling.blocks_per_sm, "IS_HALF": int(is_half)}
    return cuda_source.load(SOURCE, "decode_quantised", macros, device, 32 * tiling.warps)
