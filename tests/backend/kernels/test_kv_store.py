"""KV store in Triton: exact copies into the right slots, and nothing else touched."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import kv_store, reference


@pytest.mark.parametrize(("num_kv_heads", "head_dim", "block_size"), [(2, 64, 16), (3, 80, 64), (1, 256, 128)])
def test_views_of_the_fused_tensor_are_stored_and_padding_is_skipped(device, dtype, num_kv_heads, head_dim, block_size):
    width = num_kv_heads * head_dim
    qkv = torch.randn(5, 4 * width).to(device, dtype)
    k, v = (qkv[:, i * width : (i + 1) * width].view(5, num_kv_heads, head_dim) for i in (2, 3))
    slot_mapping = torch.tensor([2 * block_size + 3, -1, 0, block_size - 1, -1], device=device)
    actual = torch.zeros(2, 3, block_size, num_kv_heads, head_dim, dtype=dtype, device=device)
    expected = actual.clone()
    kv_store.store_kv(k, v, actual[0], actual[1], slot_mapping)
    reference.store_kv(k, v, expected[0], expected[1], slot_mapping)
    assert torch.equal(actual, expected)
    assert torch.equal(actual[0, 2, 3], k[0])


def test_a_cache_with_other_heads_is_refused(device):
    k, cache = torch.zeros(1, 2, 64, device=device), torch.zeros(2, 16, 3, 64, device=device)
    with pytest.raises(ShapeError, match="do not fit a cache"):
        kv_store.store_kv(k, k, cache, cache, torch.zeros(1, dtype=torch.int64, device=device))


def test_caches_that_are_not_contiguous_are_refused(device):
    k, both = torch.zeros(1, 2, 64, device=device), torch.zeros(2, 2, 16, 2, 64, device=device)
    with pytest.raises(ShapeError, match="contiguous"):
        kv_store.store_kv(k, k, both[:, 0], both[:, 1], torch.zeros(1, dtype=torch.int64, device=device))


@pytest.mark.gpu
def test_slots_beyond_two_billion_values_are_stored():
    k = torch.randn(1, 8, 128, device="cuda", dtype=torch.float16)
    k_cache, v_cache = (torch.zeros(33_000, 64, 8, 128, device="cuda", dtype=torch.float16) for _ in range(2))
    kv_store.store_kv(k, k, k_cache, v_cache, torch.tensor([33_000 * 64 - 1], device="cuda"))
    assert torch.equal(k_cache[-1, -1], k[0]) and torch.equal(v_cache[-1, -1], k[0])
