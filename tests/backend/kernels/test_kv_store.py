"""Rotary embedding and KV store in Triton: rotated in place or into the right slots, and nothing else touched."""

from __future__ import annotations

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import kv_store, reference
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.decode_batch import rotate
from tests.backend.kernels.paged_batch import as_model


def make_angles(num_positions, rotated):
    angles = torch.rand(num_positions, rotated // 2) * 6
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def store(qkv, num_heads, num_kv_heads, cos_sin, caches, slot_mapping, positions=None):
    """Rotates and stores the fused tensor qkv [T, H + 2K, D], in place; positions default to 0, 1, 2, ..."""
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    positions = torch.arange(len(qkv), device=qkv.device) if positions is None else positions
    kv_store.rotary_and_store(q, k, v, positions, cos_sin, as_model(*caches), slot_mapping)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "rotated", "block_size"),
                         [(6, 2, 64, 64, 16), (3, 3, 80, 32, 64), (2, 1, 96, 96, 48), (2, 1, 256, 256, 128)])
def test_queries_are_rotated_in_place_keys_into_the_cache_and_padding_is_skipped(
        device, dtype, num_heads, num_kv_heads, head_dim, rotated, block_size):
    qkv = torch.randn(5, num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cos_sin, positions = make_angles(40, rotated), torch.tensor([0, 39, 7, 7, 1])
    slots = torch.tensor([2 * block_size + 3, -1, 0, block_size - 1, -1])
    fused = qkv.to(device, copy=True)
    caches = torch.zeros(2, 3, num_kv_heads, block_size, head_dim, dtype=dtype, device=device)
    store(fused, num_heads, num_kv_heads, cos_sin.to(device), caches, slots.to(device), positions.to(device))

    angles, stored = cos_sin[positions], slots >= 0
    assert_near(fused[:, :num_heads], rotate(q.double(), angles))
    assert torch.equal(fused[:, num_heads + num_kv_heads:].cpu(), v)
    token_major = caches.transpose(2, 3).flatten(1, 2)
    in_slots = token_major[:, slots[stored]]
    assert_near(in_slots[0], rotate(k.double(), angles)[stored])
    assert torch.equal(in_slots[1].cpu(), v[stored])
    token_major[:, slots[stored]] = 0
    assert not token_major.any()


def test_a_rotation_of_the_reference_is_the_same(device):
    qkv, cos_sin = torch.randn(4, 4, 64), make_angles(4, 64)
    caches, slots = torch.zeros(2, 2, 2, 1, 16, 64), torch.arange(4)
    fused = qkv.to(device, copy=True)
    actual = caches[0].to(device, copy=True)
    store(fused, 2, 1, cos_sin.to(device), actual, slots.to(device))
    q, k, v = qkv.split((2, 1, 1), dim=1)
    reference.rotary_and_store(q, k, v, torch.arange(4), cos_sin, as_model(*caches[1]), slots)
    assert_near(fused[:, :2], q)
    assert torch.allclose(actual.cpu(), caches[1], atol=1e-5)


def test_a_cache_with_other_heads_is_refused(device):
    caches = torch.zeros(2, 2, 3, 16, 64, device=device)
    with pytest.raises(ShapeError, match="do not fit a cache"):
        store(torch.zeros(1, 6, 64, device=device), 2, 2, make_angles(1, 64).to(device), caches,
              torch.zeros(1, dtype=torch.int64, device=device))


def test_caches_that_are_not_contiguous_are_refused(device):
    caches = torch.zeros(2, 2, 2, 16, 64, device=device).transpose(0, 1)
    with pytest.raises(ShapeError, match="contiguous"):
        store(torch.zeros(1, 6, 64, device=device), 2, 2, make_angles(1, 64).to(device), caches,
              torch.zeros(1, dtype=torch.int64, device=device))


def test_heads_whose_values_are_apart_are_refused(device):
    qkv = torch.zeros(1, 64, 3, device=device).transpose(1, 2)
    with pytest.raises(ShapeError, match="next to each other"):
        store(qkv, 1, 1, make_angles(1, 64).to(device), torch.zeros(2, 1, 1, 16, 64, device=device),
              torch.zeros(1, dtype=torch.int64, device=device))


@pytest.mark.gpu
def test_slots_beyond_two_billion_values_are_stored():
    qkv = torch.randn(1, 24, 128, device="cuda", dtype=torch.float16)
    caches = [torch.zeros(33_000, 8, 64, 128, device="cuda", dtype=torch.float16) for _ in range(2)]
    cos_sin = torch.stack((torch.ones(1, 64), torch.zeros(1, 64)), dim=1).cuda()
    store(qkv, 8, 8, cos_sin, caches, torch.tensor([33_000 * 64 - 1], device="cuda"))
    assert torch.equal(caches[0][-1, :, -1], qkv[0, 8:16]) and torch.equal(caches[1][-1, :, -1], qkv[0, 16:])
