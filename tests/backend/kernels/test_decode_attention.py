"""Decode attention in Triton against the naive formula in float64."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import decode_attention, reference
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.paged_batch import make_batch, naive_attention


def decode(batch, max_context_len=None):
    return decode_attention.paged_decode(batch.q, batch.k_cache, batch.v_cache, batch.block_tables, batch.context_lens,
                                         batch.scale, max_context_len or batch.max_context_len)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_every_head_dim_gives_the_formula(device, dtype, head_dim):
    batch = make_batch([1, 37, 70], head_dim=head_dim, dtype=dtype, device=device)
    assert_near(decode(batch), naive_attention(batch))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1), (20, 1), (80, 1)])
def test_every_group_size_gives_the_formula(device, dtype, num_heads, num_kv_heads):
    batch = make_batch([5, 33], num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype, device=device)
    assert_near(decode(batch), naive_attention(batch))


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_every_block_size_gives_the_formula(device, dtype, block_size):
    batch = make_batch([block_size - 1, block_size, block_size + 1], block_size=block_size, dtype=dtype, device=device)
    assert_near(decode(batch), naive_attention(batch))


def test_a_context_cut_into_splits_gives_the_formula(device, dtype):
    batch = make_batch([700, 130, 3], num_heads=3, num_kv_heads=1, block_size=64, dtype=dtype, device=device)
    assert decode_attention._num_splits(3, batch.max_context_len) > 4
    assert_near(decode(batch), naive_attention(batch))


def test_splits_that_a_short_context_does_not_fill_are_not_read(device, dtype):
    batch = make_batch([5, 65], dtype=dtype, device=device)
    assert_near(decode(batch, max_context_len=4096), naive_attention(batch))


def test_padding_rows_do_no_harm(device):
    batch = make_batch([0, 20, 0], device=device)
    assert_near(decode(batch)[1:2], naive_attention(batch)[1:2])


def test_a_head_count_that_is_not_a_multiple_is_refused(device):
    batch = make_batch([5], num_heads=5, num_kv_heads=2, device=device)
    with pytest.raises(ShapeError, match="5 query heads are not a multiple of 2 KV heads"):
        decode(batch)


@pytest.mark.gpu
def test_a_large_batch_agrees_with_the_reference(dtype):
    lens = torch.randint(1, 2000, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_batch(lens, num_heads=32, num_kv_heads=8, head_dim=128, block_size=64, dtype=dtype, device="cuda")
    expected = reference.paged_decode(batch.q.double(), batch.k_cache.double(), batch.v_cache.double(),
                                      batch.block_tables, batch.context_lens, batch.scale, batch.max_context_len)
    assert_near(decode(batch), expected)


@pytest.mark.gpu
def test_blocks_beyond_two_billion_values_are_read():
    k_cache, v_cache = (torch.zeros(33_000, 64, 8, 128, device="cuda", dtype=torch.float16) for _ in range(2))
    v_cache[-1] = 1.0
    tables, lens = (torch.tensor(value, device="cuda", dtype=torch.int32) for value in ([[32_999]], [64]))
    q = torch.randn(1, 8, 128, device="cuda", dtype=torch.float16)
    assert torch.equal(decode_attention.paged_decode(q, k_cache, v_cache, tables, lens, 1.0, 64), torch.ones_like(q))


@pytest.mark.gpu
def test_a_cuda_graph_replays_with_other_lengths():
    batch = make_batch([300, 20], device="cuda", dtype=torch.float16)
    decode(batch)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = decode(batch, max_context_len=300)  # reading the lengths would wait for the device
    batch.context_lens.copy_(torch.tensor([17, 20]))
    graph.replay()
    assert torch.equal(output, decode(batch, max_context_len=300))
