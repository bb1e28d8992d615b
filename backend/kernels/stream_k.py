"""Matrix product in CUDA C++ (stream_k.cu): a linear layer of more tokens than skinny_matmul's on Hopper, where cuBLAS
leaves multiprocessors idle, or needs launches of their own for the gate and the sum of its parts.

In bfloat16, us (one H200, chained in a CUDA graph, 2026-11-21), cuBLAS and our other kernels -> this one:

    tokens    gated, 4,096 inputs to 2 x 14,336    to 2 x 11,008       14,336 inputs to 4,096    11,008 inputs
        64             66.8 ->   59.8              50.9 ->   47.7           36.6 -> 33.3          30.3 -> 27.0
        96             68.3 ->   61.2              53.7 ->   49.6           39.5 -> 35.6          31.6 -> 28.6
       192             84.2 ->   72.2              60.7 ->   57.1           46.6 -> 44.1          41.5 -> 35.4
       256             99.0 ->   89.7              70.2 ->   71.3
       512            166.3 ->  161.0             131.4 ->  126.9
     2,048            673.5 ->  656.7             538.6 ->  509.9
     8,192           2846.1 -> 2709.8            2225.8 -> 2082.6

Used by linear.py."""

from __future__ import annotations

import ctypes
import functools
import itertools
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.kernels import cuda_source
from backend.kernels.capability import is_hopper, num_multiprocessors
from backend.kernels.cuda_source import CudaKernel

SOURCE = Path(__file__).with_suffix(".cu")
ROWS = 128  # of the weight, in a tile
STEP = 64  # inputs: 128 bytes, the widest row that shared memory swizzles
THREADS = 384
TILES = (64, 96, 128, 160, 192, 224, 256)  # tokens
SHARED_BYTES = 227 * 1024
TURNED_BYTES = 16 * 1024  # for results on their way out
OTHER_SHARED_BYTES = 2048  # barriers, and what is lost where the ring must begin at a multiple of 1,024
MAX_STAGES = 8
GROUP_TILES = 8  # token tiles whose tokens stay in the L2 cache while all of the weight goes by
MIN_TOKENS = 33
MIN_SIZE = 2048  # inputs, with fewer of which no product was measured
LONG_SIZE = 8192  # inputs, from which on cuBLAS is slow for SLOW_TOKENS too
SLOW_TOKENS = range(161, 224 + 1)
FEW_TOKENS = 96
MAX_PADDING = 1.1  # by which more than one tile's tokens may be rounded up

_tickets = itertools.count(secrets.randbits(62))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a product is divided: tiles of so many `tokens`; `sharers` (1 or 2) blocks share tokens, or with
    `shares_weights` rows. Tiles beyond whole waves are divided over all that runs at the same time, or with `splits`
    every tile in so many equal runs, and these in `parts` over the blocks of a cluster."""

    tokens: int
    sharers: int = 1
    shares_weights: bool = False
    parts: int = 1
    splits: int = 0


_GATED = [Layout(tile, sharers=1 if tile <= 128 else 2) for tile in TILES] \
    + [Layout(tile, sharers=2, shares_weights=True) for tile in (160, 192, 224, 256)]
# In pairs, since of clusters of four no more than 30 run at the same time.
_NOT_GATED = [Layout(64, parts=2, splits=1), Layout(64, parts=2, splits=2), Layout(96, parts=2, splits=2)] \
    + [Layout(tile, sharers=2, shares_weights=True, splits=2) for tile in (96, 128)]


def choose_layout(x: Tensor, weight: Tensor, is_gated: bool, residual: Tensor | None) -> Layout | None:
    """The layout for a product that this kernel is made for and faster at than cuBLAS; else None."""
    num_tokens, (num_outputs, size) = x.shape[0], weight.shape
    if num_tokens < MIN_TOKENS or not supports(x, weight, is_gated, residual):
        return None
    return _layout(num_tokens, size, num_outputs, is_gated, num_multiprocessors(x.device))


@functools.cache
def _layout(num_tokens: int, size: int, num_outputs: int, is_gated: bool, multiprocessors: int) -> Layout | None:
    """The best of those measured on an H200; None where cuBLAS was as good, or nothing alike was measured."""
    row_tiles = _count(num_outputs, ROWS)
    if size < MIN_SIZE:
        return None
    if is_gated:
        layout = _gated_layout(num_tokens)
        padded = _count(num_tokens, layout.tokens) * layout.tokens
        return layout if row_tiles >= multiprocessors and padded <= MAX_PADDING * max(num_tokens, 256) else None
    if not multiprocessors < 8 * row_tiles <= 2 * multiprocessors:  # four blocks a tile are most of them, not more
        return None
    if num_tokens <= FEW_TOKENS:
        tile = _tile(num_tokens)
        return Layout(tile, parts=2, splits=1 if tile == 64 and size < LONG_SIZE else 2)
    if size >= LONG_SIZE and num_tokens in SLOW_TOKENS:
        return Layout(_tile(_count(num_tokens, 2)), sharers=2, shares_weights=True, splits=2)
    return None


def _gated_layout(num_tokens: int) -> Layout:
    """One tile of tokens, two side by side, or as many as are filled best."""
    if num_tokens <= TILES[-1]:
        tile = _tile(num_tokens)
        return Layout(tile, sharers=1 if tile <= 128 else 2)
    if num_tokens <= 2 * TILES[-1]:
        return Layout(_tile(_count(num_tokens, 2)), sharers=2, shares_weights=True)
    return Layout(min((256, 224, 192), key=lambda tile: _count(num_tokens, tile) * tile), sharers=2)


def _tile(num_tokens: int) -> int:
    return next(tile for tile in TILES if tile >= num_tokens)


def supports(x: Tensor, weight: Tensor, is_gated: bool, residual: Tensor | None) -> bool:
    """Whether this kernel computes such a product."""
    num_results, size = weight.shape[0] // (2 if is_gated else 1), weight.shape[1]
    return (x.dtype in (torch.float16, torch.bfloat16) and size % 8 == 0 and num_results % 8 == 0
            and x.is_contiguous() and weight.is_contiguous() and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
            and (residual is None or (residual.is_contiguous() and not is_gated and residual.data_ptr() % 16 == 0))
            and runs_on(x.device))


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether this kernel runs there: wgmma, clusters and 227 KiB of shared memory a block are Hopper's."""
    return cuda_source.is_available(device) and is_hopper(device)


def stream_k(x: Tensor, weight: Tensor, bias: Tensor | None, *, is_gated: bool, residual: Tensor | None,
             layout: Layout) -> Tensor:
    """See reference.linear, without a norm, for products that are supported. Rounds once."""
    (num_tokens, size), num_outputs = x.shape, weight.shape[0]
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = x.new_empty(num_tokens, num_results) if residual is None else residual
    kernel, most_clusters = _kernel(layout.tokens, layout.sharers, layout.shares_weights, layout.parts, is_gated,
                                    x.dtype == torch.float16, x.device)
    row_tiles, token_tiles, steps = _count(num_outputs, ROWS), _count(num_tokens, layout.tokens), _count(size, STEP)
    if layout.shares_weights:
        token_tiles = _count(token_tiles, layout.sharers)
    else:
        row_tiles = _count(row_tiles, layout.sharers)
    tiles = row_tiles * token_tiles
    clusters = tiles * layout.splits or min(most_clusters, tiles * steps)
    assert layout.parts == 1 or 0 < layout.splits * layout.parts <= steps, (layout, steps)
    waves = 0 if layout.splits else max(0, tiles // clusters - 1)  # between one tile and two are left for stream-K
    blocks = clusters * layout.sharers * layout.parts
    # Of the launch's own: what runs on other streams, or is kept in other graphs, has other memory.
    workspace = torch.empty(blocks * (ROWS * layout.tokens // layout.parts * 4 + 2 * 8), dtype=torch.uint8,
                            device=x.device)
    box_rows = ROWS // layout.sharers if layout.shares_weights else ROWS
    box_tokens = layout.tokens if layout.shares_weights else layout.tokens // layout.sharers
    pitch = 2 * size
    if is_gated:  # eight gates, and their ups, after one another
        weight_map = tensor_map(weight.data_ptr(), (size, 8, 2, num_results // 8),
                                 (pitch, num_results * pitch, 8 * pitch), (STEP, 8, 2, box_rows // 16), x.dtype)
    else:
        weight_map = tensor_map(weight.data_ptr(), (size, num_outputs, 1, 1),
                                 (pitch, num_outputs * pitch, num_outputs * pitch), (STEP, box_rows, 1, 1), x.dtype)
    x_map = tensor_map(x.data_ptr(), (size, num_tokens), (pitch,), (STEP, box_tokens), x.dtype)
    kernel.launch(blocks, [
        (weight_map, None), (x_map, None), (0 if bias is None else bias.data_ptr(), ctypes.c_void_p),
        (output.data_ptr(), ctypes.c_void_p), (workspace.data_ptr(), ctypes.c_void_p),
        (next(_tickets), ctypes.c_ulonglong),
        *((int(value), ctypes.c_int) for value in (residual is not None, num_results, num_tokens, steps, row_tiles,
                                                   token_tiles, waves, GROUP_TILES))])
    return output


@functools.lru_cache(maxsize=4096)
def tensor_map(address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...],
                dtype: torch.dtype) -> Any:
    """What the copy engine has to know of a tensor: its sizes, fastest first, the others' strides in bytes, and the
    box of it that is copied at a time."""
    from cuda.bindings import driver

    kind = driver.CUtensorMapDataType
    status, encoded = driver.cuTensorMapEncodeTiled(
        kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if dtype == torch.float16 else kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        len(sizes), address, [driver.cuuint64_t(size) for size in sizes],
        [driver.cuuint64_t(stride) for stride in strides], [driver.cuuint32_t(side) for side in box],
        [driver.cuuint32_t(1)] * len(sizes), driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    assert int(status) == 0, (status.name, sizes, strides, box)
    return encoded


@functools.cache
def _kernel(tokens: int, sharers: int, shares_weights: bool, parts: int, is_gated: bool, is_half: bool,
            device: torch.device) -> tuple[CudaKernel, int]:
    """The kernel, and how many of its clusters run at the same time."""
    _compile_all(is_half, device)
    layout = Layout(tokens, sharers, shares_weights, parts)
    stages = _stages(tokens)
    kernel = cuda_source.load(SOURCE, "stream_k", _macros(layout, is_gated, is_half), device, THREADS,
                              stages * _stage_bytes(tokens) + TURNED_BYTES + OTHER_SHARED_BYTES)
    cluster = sharers * parts
    return kernel, num_multiprocessors(device) if cluster == 1 else kernel.max_clusters(cluster)


@functools.cache
def _compile_all(is_half: bool, device: torch.device) -> None:
    """A server meets all of them at its start: half a minute if it compiled one after the other."""
    variants = {tuple(_macros(layout, layout in _GATED, is_half).items()) for layout in _GATED + _NOT_GATED}
    cuda_source.compile_together(SOURCE, [dict(macros) for macros in variants], device)


def _macros(layout: Layout, is_gated: bool, is_half: bool) -> dict[str, int]:
    return {"TOKENS": layout.tokens, "STAGES": _stages(layout.tokens), "SHARERS": layout.sharers,
            "PARTS": layout.parts, "SHARES_WEIGHTS": int(layout.shares_weights), "GATED": int(is_gated),
            "IS_HALF": int(is_half)}


def _stages(tokens: int) -> int:
    return min(MAX_STAGES, (SHARED_BYTES - TURNED_BYTES - OTHER_SHARED_BYTES) // _stage_bytes(tokens))


def _stage_bytes(tokens: int) -> int:
    return (ROWS + tokens) * STEP * 2


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
