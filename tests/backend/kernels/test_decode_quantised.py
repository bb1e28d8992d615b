"""Decode attention over quantised KV in CUDA C++, in each of its tilings, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from backend.forward_batch import LayerKv
from backend.kernels import decode_quantised, reference
from backend.kv_format import KvFormat
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.paged_batch import NO_BLOCK, poisoned_cache

pytestmark = pytest.mark.hopper

LENS = [1, 37, 700, 64, 0, 2000, 129, 17]
USED = [row for row, length in enumerate(LENS) if length]
QUANTISED = [KvFormat.INT8, KvFormat.INT4, KvFormat.CALIBRATED_INT8]
TILINGS = sorted({tiling for rules in decode_quantised.TILINGS.values() for _, tiling in rules}, key=repr)


def make_cache(kv: KvFormat, num_kv_heads: int, head_dim: int, block_size: int) -> tuple[LayerKv, torch.Tensor]:
    """A cache whose scales are NaN outside of the contexts LENS, and the block tables of these."""
    random = torch.Generator().manual_seed(3)
    counts = [-(-length // block_size) for length in LENS]
    cache = poisoned_cache(kv, sum(counts) + 1, num_kv_heads, block_size, head_dim, torch.bfloat16, random)
    tables = torch.full((len(LENS), max(counts) + 1), NO_BLOCK, dtype=torch.int32)
    order, taken = torch.randperm(sum(counts), generator=random), 0
    for row, (length, count) in enumerate(zip(LENS, counts, strict=True)):
        tables[row, :count] = order[taken : taken + count]
        taken += count
        token = torch.arange(max(0, length - 1))  # the new one is for the kernel to store
        if kv.is_online:
            ranges = torch.rand(len(token), num_kv_heads, 2, generator=random) + 5
            scales = torch.stack((ranges / 2**kv.num_bits, -ranges / 2), -1).half()
            cache.scales[tables[row].long()[token // block_size], :, token % block_size] = scales
    return LayerKv(kv, cache.k.cuda(), cache.v.cuda(), cache.scales.cuda()), tables.cuda()


def make_arguments(kv: KvFormat, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int,
                   dtype: torch.dtype) -> list:
    """What paged_decode takes, with some values that are not rotated."""
    cache, tables = make_cache(kv, num_kv_heads, head_dim, block_size)
    lens = torch.tensor(LENS, dtype=torch.int32, device="cuda")
    positions = (lens.long() - 1).clamp_min(0)
    angles = torch.rand(max(LENS), head_dim // 4, device="cuda") * 6
    blocks = tables.long().gather(1, (positions // block_size)[:, None])[:, 0]
    blocks[LENS.index(0)] = cache.num_blocks - 1
    heads = torch.randn(len(LENS), num_heads + 2 * num_kv_heads, head_dim, device="cuda").to(dtype)
    return [*heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1), positions,
            torch.stack((angles.cos(), angles.sin()), dim=1), cache, blocks * block_size + positions % block_size,
            tables, lens, head_dim**-0.5]


def expected(arguments: list) -> torch.Tensor:
    """Of the same step, over the cache as the kernel has left it, with the new token."""
    q, k, v, positions, cos_sin, cache, slots, tables, lens, scale = arguments
    spare = LayerKv(cache.format, *(None if tensor is None else tensor.clone()
                                    for tensor in (cache.k, cache.v, cache.scales)))
    wide = [heads.double() for heads in (q, k, v)]
    reference.rotary_and_store(*wide, positions, cos_sin, spare, slots)  # rotates the queries
    starts = torch.arange(len(LENS) + 1, dtype=torch.int32, device="cuda")
    used = torch.tensor(USED, device="cuda")
    return reference.paged_prefill(wide[0][used], cache, tables[used], lens[used], starts[: len(USED) + 1], scale, 1,
                                   max(LENS), sum(LENS))


@pytest.mark.parametrize("kv", QUANTISED, ids=lambda kv: kv.name)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size"), [
    (4, 4, 128, 64), (32, 8, 128, 16), (7, 1, 64, 128), (20, 1, 64, 32)])
def test_every_tiling_gives_what_the_reference_reads_from_the_same_cache(
        monkeypatch, kv, tiling, num_heads, num_kv_heads, head_dim, block_size):
    monkeypatch.setattr(decode_quantised, "_tiling", lambda *_: tiling)
    for dtype in (torch.float16, torch.bfloat16):
        arguments = make_arguments(kv, num_heads, num_kv_heads, head_dim, block_size, dtype)
        output = decode_quantised.paged_decode(*arguments)
        assert_near(output[USED], expected(arguments))


@pytest.mark.parametrize("kv", QUANTISED, ids=lambda kv: kv.name)
def test_repeated_launches_agree_bit_for_bit(kv):
    arguments = make_arguments(kv, 32, 8, 128, 64, torch.bfloat16)
    first = decode_quantised.paged_decode(*arguments)[USED]
    for _ in range(300):
        assert torch.equal(decode_quantised.paged_decode(*arguments)[USED], first)
    assert not decode_quantised.finished_splits(first.device, 1).any()


def test_other_head_dims_and_float32_are_left_to_the_portable_kernel():
    cache = poisoned_cache(KvFormat.INT8, 2, 1, 16, 80, torch.float16, torch.Generator())
    assert not decode_quantised.fits(torch.zeros(1, 1, 80, device="cuda").half(), cache)
    cache = poisoned_cache(KvFormat.INT8, 2, 1, 16, 64, torch.float16, torch.Generator())
    assert not decode_quantised.fits(torch.zeros(1, 1, 64, device="cuda"), cache)
    assert decode_quantised.fits(torch.zeros(1, 1, 64, device="cuda").half(), cache)
