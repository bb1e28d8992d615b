"""Decode attention in Triton against the naive formula in float64, and what its kernel for Hopper has to do alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import decode_attention, decode_cluster, reference
from tests.backend.kernels.comparison import TOLERANCE, assert_near
from tests.backend.kernels.decode_batch import make_decode
from tests.backend.kernels.paged_batch import as_model, wide

every_kernel = pytest.mark.parametrize(
    "kernel", ["triton", pytest.param("cluster", marks=pytest.mark.hopper)], indirect=True)


@pytest.fixture(autouse=True)
def kernel(request, monkeypatch):
    """Triton's, or that by clusters, which has its formula checked in test_decode_cluster.py."""
    name, used = getattr(request, "param", "triton"), []
    if name == "triton":
        monkeypatch.setattr(decode_cluster, "fits", lambda *_: False)
    else:
        launch = decode_cluster.paged_decode
        monkeypatch.setattr(decode_cluster, "paged_decode", lambda *arguments: used.append(1) or launch(*arguments))
    yield name
    assert bool(used) == (name == "cluster")


def decode(batch):
    return decode_attention.paged_decode(*batch.arguments)


@pytest.fixture
def tile(monkeypatch):
    """Changes how the work is cut: tile(num_shares=8)."""
    usual = decode_attention._tiling

    def change(**fields):
        monkeypatch.setattr(decode_attention, "_tiling",
                            lambda *arguments: dataclasses.replace(usual(*arguments), **fields))

    return change


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_every_head_dim_gives_the_formula(device, dtype, head_dim):
    batch = make_decode([1, 37, 70], head_dim=head_dim, dtype=dtype, device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.hopper
def test_a_launch_after_the_kernel_in_front_gives_the_formula_too(dtype, monkeypatch):
    monkeypatch.setattr(decode_attention.pdl, "launch_options", lambda device: {"USE_PDL": False})
    batch = make_decode([1, 37, 700], num_heads=8, num_kv_heads=2, dtype=dtype, device="cuda")
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1), (20, 1), (80, 1)])
def test_every_group_size_gives_the_formula(device, dtype, num_heads, num_kv_heads):
    batch = make_decode([5, 33], num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype, device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_every_block_size_gives_the_formula(device, dtype, block_size):
    batch = make_decode([block_size - 1, block_size, block_size + 1], block_size=block_size, dtype=dtype,
                        device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 32), (80, 32), (96, 96)])
def test_values_beyond_the_rotated_ones_are_left_as_they_are(device, dtype, head_dim, rotated):
    batch = make_decode([20, 3], rotated, head_dim=head_dim, dtype=dtype, device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (10, 2)])
def test_contexts_cut_into_splits_give_the_formula(device, dtype, tile, num_heads, num_kv_heads):
    tile(num_shares=24, keys_tile=32, min_split=32)
    batch = make_decode([700, 130, 3, 33, 1], num_heads=num_heads, num_kv_heads=num_kv_heads, block_size=64,
                        dtype=dtype, device=device)
    assert_near(decode(batch), batch.expected())


def test_a_long_row_has_no_more_splits_than_one_program_merges(device, tile):
    tile(num_shares=100, keys_tile=16, min_split=16)
    batch = make_decode([32 * 16 + 17], num_heads=1, num_kv_heads=1, device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize(("keys_tile", "block_size"), [(16, 64), (64, 16), (32, 32), (32, 48)])
def test_tiles_within_a_block_and_over_several_give_the_formula(device, dtype, tile, keys_tile, block_size):
    tile(keys_tile=keys_tile, min_split=keys_tile, num_shares=4)
    batch = make_decode([200, 1, 49], block_size=block_size, dtype=dtype, device=device)
    assert_near(decode(batch), batch.expected())


@pytest.mark.parametrize("lens", [[1], [2], [17], [33, 1], [0, 0, 40], [64, 65, 66]])
def test_every_cut_covers_each_cached_token_once(device, tile, lens):
    for num_shares in (1, 2, 5, 20):
        tile(num_shares=num_shares, keys_tile=16, min_split=16)
        batch = make_decode(lens, dtype=torch.float32, device=device)
        used = [row for row, length in enumerate(lens) if length]
        assert_near(decode(batch)[used], batch.expected()[used])


def test_the_new_key_is_stored_rotated_the_new_value_as_it_is_and_nothing_else(device, dtype):
    batch = make_decode([33, 16, 1], 32, num_heads=6, dtype=dtype, device=device)
    before = batch.cache.k.clone(), batch.cache.v.clone()
    decode(batch)
    block, offset = batch.slot_mapping // 16, batch.slot_mapping % 16
    for cache, untouched, dense in ((batch.cache.k, before[0], batch.paged.keys),
                                    (batch.cache.v, before[1], batch.paged.values)):
        new = cache[block, :, offset]
        assert_near(new, torch.stack([sequence[-1] for sequence in dense]))
        untouched[block, :, offset] = new
        assert torch.equal(cache.nan_to_num(7.0), untouched.nan_to_num(7.0))


@every_kernel
def test_a_row_whose_query_and_key_are_tensors_of_their_own_gives_the_same(device):
    """As they are after a norm of heads."""
    batch = make_decode([20, 50], dtype=torch.float16, device=device)
    apart = dataclasses.replace(batch, q=batch.q.contiguous(), k=batch.k.contiguous())
    assert torch.equal(decode(apart), decode(batch))


@every_kernel
def test_padding_rows_do_no_harm(device):
    batch = make_decode([0, 20, 0], dtype=torch.float16, device=device)
    before, slot = batch.cache.v.clone(), batch.slot_mapping[1]
    assert_near(decode(batch)[1:2], batch.expected()[1:2])
    before[slot // 16, :, slot % 16] = batch.v[1]
    assert torch.equal(batch.cache.v.nan_to_num(7.0), before.nan_to_num(7.0))


@every_kernel
def test_only_padding_rows_are_no_error(device):
    assert decode(make_decode([0, 0], dtype=torch.float16, device=device)).shape == (2, 4, 64)


def test_a_launch_leaves_the_counters_at_zero(device, tile):
    tile(num_shares=32, keys_tile=16, min_split=16)
    batch = make_decode([300, 40], device=device)
    first = decode(batch)
    assert not decode_attention.finished_splits(batch.q.device, 1).any()
    assert torch.equal(decode(batch), first)


def test_one_row_between_dense_layers_is_left_to_triton(device, monkeypatch):
    rows = []
    monkeypatch.setattr(decode_cluster, "fits", lambda *_: True)
    monkeypatch.setattr(decode_cluster, "paged_decode", lambda q, *_: rows.append(len(q)))
    for lens, after_dense in (([20], True), ([20], False), ([20, 5], True), ([20, 5], False)):
        decode_attention.paged_decode(*make_decode(lens, device=device).arguments, after_dense=after_dense)
    assert rows == [1, 2, 2]


def test_a_head_count_that_is_not_a_multiple_is_refused(device):
    batch = make_decode([5], num_heads=5, num_kv_heads=1, device=device)
    cache = torch.zeros(2, 2, 16, 64, device=device)
    with pytest.raises(ShapeError, match="5 query heads are not a multiple of 2 KV heads"):
        decode(dataclasses.replace(batch, cache=as_model(cache, cache)))


def test_rows_without_a_context_length_are_refused(device):
    batch, one = make_decode([5, 6], device=device), make_decode([5], device=device)
    with pytest.raises(ShapeError, match="each row must have one new token"):
        decode(dataclasses.replace(batch, paged=one.paged))


@pytest.mark.gpu
@pytest.mark.parametrize("num_kv_heads", [8, 32])
def test_a_large_batch_agrees_with_the_reference(dtype, num_kv_heads):
    lens = torch.randint(1, 2000, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_decode(lens, num_heads=32, num_kv_heads=num_kv_heads, head_dim=128, block_size=64, dtype=dtype,
                        device="cuda")
    precise = dataclasses.replace(batch, **{name: getattr(batch, name).double() for name in ("q", "k", "v")},
                                  cache=wide(batch.cache))
    assert_near(decode(batch), reference.paged_decode(*precise.arguments))


@pytest.mark.gpu
@every_kernel
@pytest.mark.parametrize("num_kv_heads", [8, 32])
def test_repeated_launches_agree_bit_for_bit(num_kv_heads):
    """Whichever split ends last, the sums are the same; one that ended unseen would change them."""
    lens = [2000, 1, 700, 65]
    batch = make_decode(lens, num_heads=32, num_kv_heads=num_kv_heads, head_dim=128, block_size=64,
                        dtype=torch.bfloat16, device="cuda")
    first = decode(batch)
    for _ in range(300):
        assert torch.equal(decode(batch), first)


@pytest.mark.gpu
@every_kernel
def test_blocks_beyond_two_billion_values_are_read_and_stored():
    cache = as_model(*(torch.zeros(33_000, 8, 64, 128, device="cuda", dtype=torch.float16) for _ in range(2)))
    cache.v[-1] = 1.0
    tables, lens = (torch.tensor(value, device="cuda", dtype=torch.int32) for value in ([[32_999]], [64]))
    positions, slots = torch.tensor([63], device="cuda"), torch.tensor([33_000 * 64 - 1], device="cuda")
    q, k = torch.randn(2, 1, 8, 128, device="cuda", dtype=torch.float16)
    v, cos_sin = torch.ones_like(k), torch.zeros(64, 2, 64, device="cuda")
    cos_sin[:, 0] = 1.0
    output = decode_attention.paged_decode(q, k, v, positions, cos_sin, cache, slots, tables, lens, 1.0)
    assert (output - 1).abs().max() < TOLERANCE[torch.float16]
    assert torch.equal(cache.k[-1, :, -1], k[0])


@pytest.mark.gpu
@every_kernel
def test_a_cuda_graph_replays_with_other_lengths():
    batch = make_decode([300, 20], device="cuda", dtype=torch.float16)
    decode(batch)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = decode(batch)
    batch.paged.context_lens.copy_(torch.tensor([17, 20]))
    batch.positions.copy_(torch.tensor([16, 19]))
    batch.slot_mapping[0] = batch.paged.block_tables[0, 1].long() * 16
    graph.replay()
    assert torch.equal(output, decode(batch))
