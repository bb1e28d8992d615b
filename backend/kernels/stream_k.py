"""Matrix product in CUDA C++ (stream_k.cu): a linear layer of some dozens to some hundreds of tokens on Hopper.

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
MAX_STAGES = 8
GROUP_TILES = 8  # token tiles whose tokens stay in the L2 cache while all of the weight goes by

_tickets = itertools.count(secrets.randbits(62))


@dataclass(frozen=True, slots=True)
class Layout:
    """How the product is divided: tiles of so many `tokens`; clusters of so many blocks, which share tokens, or with
    `shares_weights` rows; `clusters` of them, 0 for all that run at the same time; `waves` of whole tiles, before the
    others are divided by the sum's length too."""

    tokens: int
    cluster: int
    shares_weights: bool
    clusters: int = 0
    waves: int = 0


def supports(x: Tensor, weight: Tensor, is_gated: bool, residual: Tensor | None) -> bool:
    """Whether this kernel computes such a product."""
    num_results, size = weight.shape[0] // (2 if is_gated else 1), weight.shape[1]
    return (x.dtype in (torch.float16, torch.bfloat16) and size % 8 == 0 and num_results % 8 == 0
            and x.is_contiguous() and weight.is_contiguous() and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
            and (residual is None or residual.is_contiguous() and not is_gated and residual.data_ptr() % 16 == 0)
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
    kernel, most_clusters = _kernel(layout.tokens, layout.cluster, layout.shares_weights, is_gated,
                                    x.dtype == torch.float16, x.device)
    row_tiles, token_tiles = _count(num_outputs, ROWS), _count(num_tokens, layout.tokens)
    if layout.shares_weights:
        token_tiles = _count(token_tiles, layout.cluster)
    else:
        row_tiles = _count(row_tiles, layout.cluster)
    steps = _count(size, STEP)
    clusters = min(layout.clusters or most_clusters, row_tiles * token_tiles * steps)
    blocks = clusters * layout.cluster
    # A block of memory of the launch's own: so launches on other streams, and in other graphs, have others.
    workspace = torch.empty(blocks * (ROWS * layout.tokens * 4 + 16), dtype=torch.uint8, device=x.device)
    box_rows = ROWS // layout.cluster if layout.shares_weights else ROWS
    box_tokens = layout.tokens if layout.shares_weights else layout.tokens // layout.cluster
    pitch = 2 * size
    if is_gated:  # eight gates, and their ups, after one another
        weight_map = _tensor_map(weight.data_ptr(), (size, 8, 2, num_results // 8),
                                 (pitch, num_results * pitch, 8 * pitch), (STEP, 8, 2, box_rows // 16), x.dtype)
    else:
        weight_map = _tensor_map(weight.data_ptr(), (size, num_outputs, 1, 1),
                                 (pitch, num_outputs * pitch, num_outputs * pitch), (STEP, box_rows, 1, 1), x.dtype)
    x_map = _tensor_map(x.data_ptr(), (size, num_tokens), (pitch,), (STEP, box_tokens), x.dtype)
    kernel.launch(blocks, [
        (weight_map, None), (x_map, None), (0 if bias is None else bias.data_ptr(), ctypes.c_void_p),
        (output.data_ptr(), ctypes.c_void_p), (workspace.data_ptr(), ctypes.c_void_p),
        (next(_tickets), ctypes.c_ulonglong),
        *((int(value), ctypes.c_int) for value in (residual is not None, num_results, num_tokens, steps, row_tiles,
                                                   token_tiles, layout.waves, GROUP_TILES))])
    return output


@functools.lru_cache(maxsize=4096)
def _tensor_map(address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...],
                dtype: torch.dtype) -> Any:
    """What the copy engine has to know of a tensor: its sizes, fastest first, the others' strides in bytes, and the
    box of it that is copied at a time."""
    from cuda.bindings import driver

    kind = driver.CUtensorMapDataType
    status, tensor_map = driver.cuTensorMapEncodeTiled(
        kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if dtype == torch.float16 else kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        len(sizes), address, [driver.cuuint64_t(size) for size in sizes],
        [driver.cuuint64_t(stride) for stride in strides], [driver.cuuint32_t(side) for side in box],
        [driver.cuuint32_t(1)] * len(sizes), driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
    assert int(status) == 0, (status.name, sizes, strides, box)
    return tensor_map


@functools.cache
def _kernel(tokens: int, cluster: int, shares_weights: bool, is_gated: bool, is_half: bool,
            device: torch.device) -> tuple[CudaKernel, int]:
    """The kernel, and how many of its clusters run at the same time."""
    stage_bytes = (ROWS + tokens) * STEP * 2
    turned_bytes = 2 * ROWS * (32 if tokens % 64 else 64)
    stages = min(MAX_STAGES, (SHARED_BYTES - 2048 - turned_bytes) // stage_bytes)
    macros = {"TOKENS": tokens, "STAGES": stages, "CLUSTER": cluster, "SHARES_WEIGHTS": shares_weights,
              "GATED": is_gated, "IS_HALF": is_half}
    kernel = cuda_source.load(SOURCE, "stream_k", {name: int(value) for name, value in macros.items()}, device,
                              THREADS, stages * stage_bytes + turned_bytes + 2048)
    return kernel, num_multiprocessors(device) if cluster == 1 else kernel.max_clusters(cluster)


def _count(whole: int, part: int) -> int:
    return -(-whole // part)
