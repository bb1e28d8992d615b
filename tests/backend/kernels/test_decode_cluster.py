"""Decode attention by clusters of blocks, in the tilings that are used and some others, against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.kernels import decode_cluster
from backend.kernels.decode_cluster import Tiling
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.decode_batch import make_decode

CPU = torch.device("cpu")
LENS = [1, 16, 17, 2048, 0, 129, 5000, 300, 128, 600, 1000]  # of 1, 2, 4 and 8 blocks in a cluster of 8
USED = [row for row, length in enumerate(LENS) if length]
SHAPES = [(32, 8, 128, 64), (4, 4, 128, 16), (14, 2, 64, 48), (8, 1, 128, 128)]  # heads, KV heads, D, block size
TILINGS = [*(tiling for _, tiling in decode_cluster.TILINGS), Tiling(2, 2, 3), Tiling(1, 4, 1), Tiling(4, 4, 1, 1)]


@pytest.mark.hopper
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_tiling_gives_the_attention_and_stores_the_new_token_alone(tiling, shape, dtype, monkeypatch):
    monkeypatch.setattr(decode_cluster, "_tiling", lambda _: tiling)
    num_heads, num_kv_heads, head_dim, block_size = shape
    batch = make_decode(LENS, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, block_size=block_size,
                        dtype=dtype, device="cuda")
    before = batch.cache.k.clone(), batch.cache.v.clone()
    output = decode_cluster.paged_decode(*batch.arguments)
    assert_near(output[USED], batch.expected()[USED])
    block, offset = batch.slot_mapping[USED] // block_size, batch.slot_mapping[USED] % block_size
    for cache, untouched, dense in ((batch.cache.k, before[0], batch.paged.keys),
                                    (batch.cache.v, before[1], batch.paged.values)):
        new = cache[block, :, offset]
        assert_near(new, torch.stack([dense[row][-1] for row in USED]))
        untouched[block, :, offset] = new
        assert torch.equal(cache.nan_to_num(7.0), untouched.nan_to_num(7.0))


@pytest.mark.hopper
def test_rows_behind_the_first_warps_worth_have_their_blocks_too():
    lens = [37 * row % 90 for row in range(40)] + [700]
    used = [row for row, length in enumerate(lens) if length]
    batch = make_decode(lens, num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float16, device="cuda")
    assert_near(decode_cluster.paged_decode(*batch.arguments)[used], batch.expected()[used])


@given(st.lists(st.integers(0, 1000) | st.sampled_from([0, 1, 32768]), min_size=1, max_size=64), st.integers(2, 40),
       st.sampled_from([Tiling(8, 4, 2, 1.5), Tiling(4, 4, 1, 1), Tiling(8, 4, 2)]))
def test_clusters_are_enough_for_any_lengths(lens, num_kv_heads, tiling):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_cluster, "num_multiprocessors", lambda device: 132)
        num_shares = decode_cluster._num_shares(tiling, num_kv_heads, CPU)
        launched = decode_cluster._num_clusters(len(lens), num_kv_heads, tiling, CPU)
    share = -(-sum(lens) // num_shares) if num_shares else 0  # as find_work in the source
    needed = 0
    for length in filter(None, lens):
        num_blocks = 1
        while num_blocks < tiling.cluster and num_blocks * share < length:
            num_blocks *= 2
        needed += -(-num_kv_heads * num_blocks // tiling.cluster)
    assert needed <= launched <= len(lens) * num_kv_heads


@pytest.mark.hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_nan_stays_in_its_own_sequence(dtype):
    batch = make_decode([20, 50, 3], num_heads=8, num_kv_heads=2, head_dim=64, dtype=dtype, device="cuda")
    batch.k[1, 0, 5] = batch.v[1, 1, 7] = torch.nan
    output = decode_cluster.paged_decode(*batch.arguments)
    assert_near(output[[0, 2]], batch.expected()[[0, 2]])
    assert output[1].isnan().any()


@pytest.mark.hopper
def test_what_it_is_not_made_for_is_left_to_the_portable_kernel():
    def fits(**changed: int) -> bool:
        batch = make_decode([40], changed.pop("rotated", None), device="cuda", **{
            "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "block_size": 16, "dtype": torch.float16, **changed})
        return decode_cluster.fits(batch.q, batch.k, batch.v, batch.cos_sin, batch.cache)

    assert fits() and fits(dtype=torch.bfloat16)
    assert not (fits(rotated=32) or fits(head_dim=80) or fits(dtype=torch.float32) or fits(num_heads=32)
                or fits(num_kv_heads=1))
