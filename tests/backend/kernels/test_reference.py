"""The reference kernels against the formulas in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from backend.errors import ShapeError
from backend.kernels import reference
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.decode_batch import make_decode
from tests.backend.kernels.paged_batch import make_batch, naive_attention

ALL_DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])


def decode(batch):
    return reference.paged_decode(*batch.arguments)


def prefill(batch):
    return reference.paged_prefill(batch.q, batch.k_cache, batch.v_cache, batch.block_tables, batch.context_lens,
                                   batch.query_start, batch.scale, batch.max_query_len, batch.max_context_len)


@ALL_DTYPES
def test_rms_norm_divides_by_the_root_mean_square(dtype):
    x, weight = torch.randn(3, 2, 48).to(dtype), torch.randn(48).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_near(reference.rms_norm(x, weight, 1e-5), expected)


def test_add_rms_norm_returns_the_norm_and_the_new_residual():
    x, residual, weight = torch.randn(3, 48), torch.randn(3, 48), torch.randn(48)
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, reference.rms_norm(x + residual, weight, 1e-5))


@ALL_DTYPES
def test_silu_and_mul_gates_the_second_half_with_the_first(dtype):
    gate_up = torch.randn(3, 20).to(dtype)
    gate, up = gate_up[:, :10].double(), gate_up[:, 10:].double()
    assert_near(reference.silu_and_mul(gate_up), gate / (1 + torch.exp(-gate)) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rotated", [8, 6])
def test_rotary_turns_each_pair_of_values_by_its_angle(dtype, rotated):
    tokens, heads, kv_heads, head_dim = 4, 3, 1, 8
    before = torch.randn(tokens, heads + 2 * kv_heads, head_dim).to(dtype)
    q, k, v = before.clone().split((heads, kv_heads, kv_heads), dim=1)
    angles = torch.rand(10, rotated // 2) * 6
    cos_sin, positions = torch.stack((angles.cos(), angles.sin()), dim=1), torch.tensor([0, 9, 3, 3])
    caches = torch.zeros(2, 1, 16, kv_heads, head_dim, dtype=dtype)
    reference.rotary_and_store(q, k, v, positions, cos_sin, caches[0], caches[1], torch.arange(tokens))

    expected = before.double().clone()
    for token, position in enumerate(positions.tolist()):
        for head in range(heads + kv_heads):
            for pair in range(rotated // 2):
                point = complex(*expected[token, head, [pair, pair + rotated // 2]].tolist())
                angle = angles[position, pair].item()
                turned = point * complex(math.cos(angle), math.sin(angle))
                expected[token, head, pair], expected[token, head, pair + rotated // 2] = turned.real, turned.imag
    assert_near(q, expected[:, :heads])
    assert_near(caches[0, 0, :tokens], expected[:, heads:heads + kv_heads])
    assert torch.equal(caches[1, 0, :tokens], before[:, heads + kv_heads:])


def test_the_store_fills_the_named_slots_and_skips_padding():
    qkv = torch.randn(4, 6, 8)
    caches, no_turn = torch.zeros(2, 3, 16, 2, 8), torch.tensor([[[1.0], [0.0]]])
    q, k, v = qkv.split(2, dim=1)
    reference.rotary_and_store(q, k, v, torch.zeros(4).long(), no_turn, caches[0], caches[1],
                               torch.tensor([40, -1, 3, 4]))
    expected = torch.zeros_like(caches)
    for dense, cache in ((k, expected[0]), (v, expected[1])):
        cache[2, 8], cache[0, 3], cache[0, 4] = dense[0], dense[2], dense[3]
    assert torch.equal(caches, expected)


@ALL_DTYPES
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 64), (6, 2, 80), (7, 1, 96)])
def test_decode_attends_to_the_whole_context(dtype, num_heads, num_kv_heads, head_dim):
    batch = make_decode([1, 16, 33, 50], num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    assert_near(decode(batch), batch.expected())


def test_decode_of_equal_lengths_gives_the_same():
    batch = make_decode([40, 40, 40])
    assert_near(decode(batch), batch.expected())


def test_decode_in_groups_of_rows_gives_the_same(monkeypatch):
    monkeypatch.setattr(reference, "DECODE_GROUP_TOKENS", 80)
    batch = make_decode([40, 3, 25, 40, 7])
    assert_near(decode(batch), batch.expected())


def test_decode_leaves_padding_rows_alone():
    batch = make_decode([0, 5, 0])
    assert_near(decode(batch)[1:2], batch.expected()[1:2])
    only_padding = make_decode([0, 0])
    assert decode(only_padding).shape == (2, 4, 64)


@ALL_DTYPES
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 64), (6, 2, 80), (7, 1, 96)])
def test_prefill_attends_to_cached_tokens_and_to_earlier_new_ones(dtype, num_heads, num_kv_heads, head_dim):
    batch = make_batch([5, 20, 33, 18], [5, 1, 7, 0], num_heads=num_heads, num_kv_heads=num_kv_heads,
                       head_dim=head_dim, dtype=dtype)
    assert_near(prefill(batch), naive_attention(batch))


@pytest.mark.parametrize(("limit", "value"), [("PREFILL_QUERIES", 4), ("PREFILL_SCORES", 300)])
def test_prefill_in_tiles_gives_the_same(monkeypatch, limit, value):
    monkeypatch.setattr(reference, limit, value)
    batch = make_batch([23, 30], [23, 11])
    assert_near(prefill(batch), naive_attention(batch))


def test_heads_that_do_not_share_evenly_are_refused():
    batch, cache = make_decode([5], num_heads=5, num_kv_heads=1), torch.zeros(2, 16, 2, 64)
    with pytest.raises(ShapeError, match="5 query heads are not a multiple of 2 KV heads"):
        decode(dataclasses.replace(batch, k_cache=cache, v_cache=cache))


def test_a_head_dim_above_the_limit_is_refused():
    batch, cache = make_batch([5], [2]), torch.zeros(2, 16, 2, 512)
    with pytest.raises(ShapeError, match="at most 256"):
        prefill(dataclasses.replace(batch, q=torch.zeros(2, 4, 512), k_cache=cache, v_cache=cache))


def test_a_cache_of_another_dtype_is_refused():
    batch = make_decode([5])
    with pytest.raises(ShapeError, match=r"q is torch.float32, but the KV cache is torch.float16"):
        decode(dataclasses.replace(batch, k_cache=batch.k_cache.half(), v_cache=batch.v_cache.half()))


def test_an_odd_gate_up_is_refused():
    with pytest.raises(ShapeError, match="must be even"):
        reference.silu_and_mul(torch.zeros(2, 7))


def test_a_rotation_wider_than_the_head_is_refused():
    with pytest.raises(ShapeError, match="at most head_dim=64"):
        decode(dataclasses.replace(make_decode([5]), cos_sin=torch.zeros(5, 2, 33)))
