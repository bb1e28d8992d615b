"""Matrix product with four-bit weights in CUDA C++ (w4_stream_k.cu): a linear layer of many tokens on Hopper.

The four linear layers of a decoder layer, in float16, us (one H200, chained in a CUDA graph, 2026-11-21), with dense
weights (linear.py) -> with this kernel:

    tokens    Llama-2-7B's shape    InternLM2.5-7B's
        32         119.9 ->  78.8      127.5 ->  83.3
        64         119.5 ->  92.0      124.5 ->  97.7
       128         130.6 -> 114.6      136.7 -> 126.1
       256         174.3 -> 176.3      185.5 -> 184.6
       512         295.8 -> 307.7      314.3 -> 324.3
     1,024         561.0 -> 570.9      605.4 -> 624.7

What each reaches alone: `python -m benchmarks.kernels --only linear_w4`. Used by w4_linear.py."""

from __future__ import annotations

import ctypes
import functools
import itertools
import secrets
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.kernels import cuda_source, stream_k
from backend.kernels.capability import num_multiprocessors
from backend.kernels.cuda_source import CudaKernel
from backend.kernels.w4_weight import PIECE, STRIP, W4Weight, piece_bytes

SOURCE = Path(__file__).with_suffix(".cu")
# Tokens and rows of a tile, and how many blocks share a multiprocessor: how long 128 inputs of a tile take, us.
STEP_US = {(32, 128, 2): 0.90, (64, 128, 1): 0.68, (64, 128, 2): 1.15, (64, 192, 1): 0.91, (96, 128, 1): 0.77,
           (96, 192, 1): 1.04, (128, 128, 1): 0.89, (128, 192, 1): 1.23, (160, 128, 1): 1.02, (160, 192, 1): 1.46,
           (192, 128, 1): 1.19, (192, 192, 1): 1.66, (224, 128, 1): 1.37, (256, 128, 1): 1.53}
AREA = 256 * 128  # sums
HAND_OVER_US = 1.3  # for each that hands over sums of a tile
SUMS_US = 5.1  # for AREA sums that are handed over
RESULTS_US = 0.45  # for AREA sums that leave as results
MAX_SPLITS = 4
SHARED_BYTES = 227 * 1024
MAX_STAGES = 10
MAX_EARLY_STAGES = 4  # of weights that are copied before the first tokens: more would only delay those
GROUP_TILES = 8  # token tiles whose tokens stay in the L2 cache while all of the weight goes by

_tickets = itertools.count(secrets.randbits(62))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a product is divided: tiles of so many `tokens` and `rows` of the weight, so many blocks of which run on a
    multiprocessor at the same time. Tiles beyond whole waves are divided over all that runs at the same time, or with
    `splits` every tile in so many equal runs, and these in `parts` over the blocks of a cluster."""

    tokens: int
    rows: int
    residents: int = 1
    parts: int = 1
    splits: int = 0


def fits(x: Tensor, weight: W4Weight, is_gated: bool, residual: Tensor | None) -> bool:
    """Whether this kernel is made for such a product."""
    num_results = weight.out_features // (2 if is_gated else 1)
    return (x.shape[0] > 0 and x.dtype in (torch.float16, torch.bfloat16) and weight.in_features % 8 == 0
            and num_results % STRIP == 0 and x.is_contiguous() and x.data_ptr() % 16 == 0
            and (residual is None or (residual.is_contiguous() and not is_gated and residual.data_ptr() % 16 == 0))
            and stream_k.runs_on(x.device))


def w4_stream_k(x: Tensor, weight: W4Weight, bias: Tensor | None, *, is_gated: bool, residual: Tensor | None) -> Tensor:
    """See reference.linear_w4, without a norm, for products that fit. Rounds once."""
    layout = best_layout(x.shape[0], x.shape[1], weight.out_features, is_gated, num_multiprocessors(x.device))
    return launch(layout, x, weight, bias, is_gated=is_gated, residual=residual)


def launch(layout: Layout, x: Tensor, weight: W4Weight, bias: Tensor | None, *, is_gated: bool,
           residual: Tensor | None) -> Tensor:
    """As w4_stream_k, laid out in this way."""
    (num_tokens, size), num_outputs = x.shape, weight.out_features
    num_results = num_outputs // 2 if is_gated else num_outputs
    output = x.new_empty(num_tokens, num_results) if residual is None else residual
    kernel, most_clusters = _kernel(layout.tokens, layout.rows, layout.residents, layout.parts, weight.group_size,
                                    is_gated, x.dtype == torch.float16, x.device)
    row_tiles, token_tiles = _count(num_outputs, layout.rows), _count(num_tokens, layout.tokens)
    steps = _count(size, PIECE)
    tiles = row_tiles * token_tiles
    clusters = tiles * layout.splits or min(most_clusters, tiles * steps)
    assert layout.parts == 1 or 0 < layout.splits * layout.parts <= steps, (layout, steps)
    waves = 0 if layout.splits else max(0, tiles // clusters - 1)  # between one tile and two are left for stream-K
    blocks = clusters * layout.parts
    # A block of memory of the launch's own: so launches on other streams, and in other graphs, have others.
    workspace = torch.empty(blocks * (layout.rows * layout.tokens // layout.parts * 4 + 32), dtype=torch.uint8,
                            device=x.device)
    x_map = stream_k.tensor_map(x.data_ptr(), (size, num_tokens), (2 * size,), (64, layout.tokens), x.dtype)
    kernel.launch(blocks, [
        (weight.packed.data_ptr(), ctypes.c_void_p), (x_map, None),
        (0 if bias is None else bias.data_ptr(), ctypes.c_void_p), (output.data_ptr(), ctypes.c_void_p),
        (workspace.data_ptr(), ctypes.c_void_p), (next(_tickets), ctypes.c_ulonglong),
        *((int(value), ctypes.c_int) for value in (residual is not None, num_outputs // STRIP, num_results, num_tokens,
                                                   steps, row_tiles, token_tiles, waves, GROUP_TILES))])
    return output


@functools.cache
def best_layout(num_tokens: int, size: int, num_outputs: int, is_gated: bool, multiprocessors: int) -> Layout:
    """The fastest one, as predicted from what was measured on an H200: on average 1 % slower than the best measured."""
    layouts = []
    for tile in STEP_US:
        layouts.append(Layout(*tile))
        tiles = _count(num_outputs, tile[1]) * _count(num_tokens, tile[0])
        for parts in (1,) if is_gated else (1, 2):
            most = min(MAX_SPLITS, multiprocessors * tile[2] // parts // tiles, _count(size, PIECE) // parts)
            layouts += [Layout(*tile, parts, splits) for splits in range(1, most + 1)]
    return min(layouts, key=lambda layout: _predicted_us(layout, num_tokens, size, num_outputs, multiprocessors))


def _predicted_us(layout: Layout, num_tokens: int, size: int, num_outputs: int, multiprocessors: int) -> float:
    """How long a product takes, without what all layouts have in common."""
    tiles = _count(num_outputs, layout.rows) * _count(num_tokens, layout.tokens)
    clusters = multiprocessors * layout.residents // layout.parts
    steps = _count(size, PIECE)
    if layout.splits:
        steps, finished, handing = _count(steps, layout.splits * layout.parts), 1.0, layout.splits - 1.0
    else:
        steps, finished = steps * tiles / clusters, max(1.0, tiles / clusters)
        handing = max(1.0, clusters / tiles) if tiles % clusters else 0.0
    area = layout.tokens * layout.rows * layout.residents / layout.parts / AREA
    return (STEP_US[layout.tokens, layout.rows, layout.residents] * steps + RESULTS_US * area * finished
            + HAND_OVER_US * handing + SUMS_US * area * (handing > 0))


@functools.cache
def _kernel(tokens: int, rows: int, residents: int, parts: int, group_size: int, is_gated: bool, is_half: bool,
            device: torch.device) -> tuple[CudaKernel, int]:
    """The kernel, and how many of its clusters run at the same time."""
    _compile_all(group_size, is_half, device)
    layout = Layout(tokens, rows, residents, parts)
    macros = _macros(layout, group_size, is_gated, is_half)
    shared_bytes = macros["STAGES"] * _stage_bytes(layout, group_size) + _other_bytes(layout)
    kernel = cuda_source.load(SOURCE, "w4_stream_k", macros, device, 2 * rows + 128, shared_bytes)
    return kernel, num_multiprocessors(device) * residents if parts == 1 else kernel.max_clusters(parts)


@functools.cache
def _compile_all(group_size: int, is_half: bool, device: torch.device) -> None:
    """What best_layout chooses from. A server meets it at its start, and compiles it side by side."""
    cuda_source.compile_together(SOURCE, [_macros(Layout(*tile, parts), group_size, is_gated, is_half)
                                          for tile in STEP_US
                                          for parts, is_gated in ((1, False), (2, False), (1, True))], device)


def _macros(layout: Layout, group_size: int, is_gated: bool, is_half: bool) -> dict[str, int]:
    stages = (SHARED_BYTES // layout.residents - _other_bytes(layout)) // _stage_bytes(layout, group_size)
    stages = min(MAX_STAGES, stages)
    return {"TOKENS": layout.tokens, "ROWS": layout.rows, "RESIDENTS": layout.residents, "PARTS": layout.parts,
            "STAGES": stages, "EARLY": min(MAX_EARLY_STAGES, stages), "CHUNK": _chunk(layout), "GROUP": group_size,
            "GATED": int(is_gated), "IS_HALF": int(is_half)}


def _stage_bytes(layout: Layout, group_size: int) -> int:
    return 2 * PIECE * layout.tokens + layout.rows // STRIP * piece_bytes(group_size)


def _chunk(layout: Layout) -> int:
    """Tokens whose results leave together."""
    tokens = layout.tokens // layout.parts
    if layout.tokens in (64, 128) and layout.rows < 256 and tokens % 64 == 0:
        return 64
    return 32 if tokens % 32 == 0 else 16


def _other_bytes(layout: Layout) -> int:
    """Results on their way out, barriers, and what it takes to begin at a multiple of 1,024."""
    return 2 * layout.rows * _chunk(layout) + 1024 + 256


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
