"""Prefill attention in Triton against the naive formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import prefill_attention, reference
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.paged_batch import make_batch, naive_attention, wide

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.fixture(autouse=True, params=["hopper", "portable"] if IS_HOPPER else ["portable"])
def kernel(request, monkeypatch):
    """Each kernel that the device can run; what the one for Hopper does not support, the other computes."""
    monkeypatch.setattr(prefill_attention, "HOPPER_MIN_SCORES", 0 if request.param == "hopper" else math.inf)


@pytest.mark.hopper
def test_the_kernel_for_hopper_computes_what_is_large_enough(monkeypatch):
    batch = make_batch([37, 50], [37, 9], head_dim=128, dtype=torch.bfloat16, device="cuda")
    calls = []
    monkeypatch.setattr(prefill_attention.prefill_hopper, "hopper_prefill", lambda *operands: calls.append(operands))
    prefill(batch)
    assert len(calls) == (prefill_attention.HOPPER_MIN_SCORES == 0)


def prefill(batch):
    return prefill_attention.paged_prefill(*batch.prefill_arguments)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_every_head_dim_gives_the_formula(device, dtype, head_dim):
    batch = make_batch([37, 50], [37, 9], head_dim=head_dim, dtype=dtype, device=device)
    assert_near(prefill(batch), naive_attention(batch))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1), (20, 1), (80, 1)])
def test_every_group_size_gives_the_formula(device, dtype, num_heads, num_kv_heads):
    batch = make_batch([19, 33], [19, 2], num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype, device=device)
    assert_near(prefill(batch), naive_attention(batch))


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_every_block_size_gives_the_formula(device, dtype, block_size):
    batch = make_batch([block_size - 1, block_size, block_size + 1], [5, block_size, 3], block_size=block_size,
                       num_heads=2, dtype=dtype, device=device)
    assert_near(prefill(batch), naive_attention(batch))


def test_a_chunk_after_cached_tokens_gives_the_same_as_the_whole_prompt(device, dtype):
    whole = make_batch([90], [90], num_heads=6, dtype=dtype, device=device)
    chunk = prefill_attention.paged_prefill(
        whole.q[50:], whole.cache, whole.block_tables, whole.context_lens,
        torch.tensor([0, 40], dtype=torch.int32, device=device), whole.scale, 40, 90, 90)
    assert_near(chunk, naive_attention(whole)[50:])


def test_rows_of_one_query_and_of_none_are_right_beside_long_ones(device, dtype):
    batch = make_batch([40, 60, 21, 1], [40, 1, 0, 1], num_heads=2, dtype=dtype, device=device)
    assert_near(prefill(batch), naive_attention(batch))


def test_a_batch_without_queries_is_no_error(device, dtype):
    batch = make_batch([5, 3], [0, 0], num_heads=2, dtype=dtype, device=device)
    assert prefill(batch).shape == (0, 2, 64)


def test_rows_may_begin_after_tokens_that_belong_to_others(device):
    """A mixed step passes its prefill rows alone, whose queries lie behind the decodes' in the same tensor."""
    batch = make_batch([30, 8, 12], [1, 8, 5], device=device)
    output = prefill_attention.paged_prefill(
        batch.q, batch.cache, batch.block_tables[1:], batch.context_lens[1:], batch.query_start[1:], batch.scale, 8, 12,
        20)
    assert_near(output[1:], naive_attention(batch)[1:])
    assert output[:1].isnan().all()


def test_a_head_count_that_is_not_a_multiple_is_refused(device):
    batch = make_batch([5], [5], num_heads=5, num_kv_heads=2, device=device)
    with pytest.raises(ShapeError, match="5 query heads are not a multiple of 2 KV heads"):
        prefill(batch)


@pytest.mark.gpu
def test_a_large_batch_agrees_with_the_reference(dtype):
    batch = make_batch([2000, 1500, 700], [2000, 300, 1], num_heads=32, num_kv_heads=8, head_dim=128, block_size=64,
                       dtype=dtype, device="cuda")
    assert_near(prefill(batch), wide_reference(batch))


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [8, 48, 64, 256])
def test_a_context_may_end_anywhere_in_a_tile_of_keys(block_size, dtype):
    contexts = [127, 128, 129, 184, 185, 191, 192, 193, 248, 256, 257, 383, 385, 512]
    batch = make_batch(contexts, [min(length, 140 + row) for row, length in enumerate(contexts)], num_heads=2,
                       num_kv_heads=1, head_dim=128, block_size=block_size, dtype=dtype, device="cuda")
    assert_near(prefill(batch), wide_reference(batch))


@pytest.mark.gpu
@pytest.mark.parametrize("num_kv_heads", [1, 4, 12])
def test_many_rows_of_different_lengths_agree_with_the_reference(num_kv_heads, dtype):
    lengths = torch.randint(0, 200, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_batch([2 * length + 1 for length in lengths], lengths, num_heads=12, num_kv_heads=num_kv_heads,
                       dtype=dtype, device="cuda")
    assert_near(prefill(batch), wide_reference(batch))


def wide_reference(batch):
    return reference.paged_prefill(batch.q.double(), wide(batch.cache), *batch.prefill_arguments[2:])
