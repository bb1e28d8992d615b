"""Decode attention by clusters of blocks, in the tilings that are used and some others, against the formula."""

from __future__ import annotations

import pytest
import torch

from backend.kernels import decode_cluster
from backend.kernels.decode_cluster import Tiling
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.decode_batch import make_decode

pytestmark = pytest.mark.hopper

LENS = [1, 16, 17, 2048, 0, 129, 5000, 300, 128]
USED = [row for row, length in enumerate(LENS) if length]
SHAPES = [(32, 8, 128, 64), (4, 4, 128, 16), (14, 2, 64, 32), (7, 1, 128, 128)]
TILINGS = [*(tiling for _, tiling in decode_cluster.TILINGS), Tiling(2, 2, 3), Tiling(1, 4, 1)]


def make(num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, lens=LENS):
    return make_decode(lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, block_size=block_size,
                       dtype=dtype, device="cuda")


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_tiling_gives_the_attention_and_stores_the_new_token(tiling, shape, dtype):
    batch = make(*shape, dtype)
    output = decode_cluster.paged_decode(*batch.arguments, tiling)
    assert_near(output[USED], batch.expected()[USED])
    blocks, offsets = batch.slot_mapping // batch.cache.block_size, batch.slot_mapping % batch.cache.block_size
    for row in USED:
        stored = batch.cache.k[blocks[row], :, offsets[row]], batch.cache.v[blocks[row], :, offsets[row]]
        assert torch.equal(stored[1], batch.v[row])
        assert_near(stored[0], batch.paged.keys[row][-1].to("cuda").double())


def test_repeated_launches_agree_bit_for_bit():
    batch = make(32, 8, 128, 64, torch.bfloat16)
    first = decode_cluster.paged_decode(*batch.arguments)[USED]
    for _ in range(300):
        assert torch.equal(decode_cluster.paged_decode(*batch.arguments)[USED], first)


def test_what_it_is_not_made_for_is_left_to_the_portable_kernel():
    def fits(**changed: int) -> bool:
        batch = make_decode([40], changed.pop("rotated", None), device="cuda", **{
            "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "block_size": 16, "dtype": torch.float16, **changed})
        return decode_cluster.fits(batch.q, batch.k, batch.v, batch.cos_sin, batch.cache)

    assert fits() and fits(dtype=torch.bfloat16)
    assert not (fits(rotated=32) or fits(head_dim=80) or fits(dtype=torch.float32) or fits(num_heads=32)
                or fits(num_kv_heads=1))
