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
from tests.backend.kernels.paged_batch import as_model, make_batch, naive_attention

ALL_DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])


def decode(batch):
    return reference.paged_decode(*batch.arguments)


def prefill(batch):
    return reference.paged_prefill(*batch.prefill_arguments)


@ALL_DTYPES
def test_rms_norm_divides_by_the_root_mean_square(dtype):
    x, weight = torch.randn(3, 2, 48).to(dtype), torch.randn(48).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_near(reference.rms_norm(x, weight, 1e-5), expected)


def test_linear_normalises_multiplies_gates_and_adds_to_the_residual():
    x, weight, bias, norm_weight = torch.randn(3, 48), torch.randn(20, 48), torch.randn(20), torch.randn(48)
    residual = torch.randn(3, 10)
    gate, up = (reference.rms_norm(x, norm_weight, 1e-5) @ weight.t() + bias).chunk(2, dim=-1)
    expected = residual + gate / (1 + torch.exp(-gate)) * up
    result = reference.linear(x, weight, bias, norm=(norm_weight, 1e-5), is_gated=True, residual=residual)
    assert result is residual
    torch.testing.assert_close(result, expected)


def test_logits_are_float32_whatever_the_model_computes_in():
    x, weight, norm_weight = (torch.randn(shape).bfloat16() for shape in ((3, 48), (20, 48), (48,)))
    logits = reference.logits(x, weight, (norm_weight, 1e-5))
    assert logits.dtype == torch.float32
    assert_near(logits.bfloat16(), reference.rms_norm(x, norm_weight, 1e-5).double() @ weight.double().t())


@pytest.mark.parametrize(("shapes", "message"), [
    (((2, 8), (4, 9), None, None, None), r"x must be \[T, X\]"),
    (((2, 8), (4, 8), (5,), None, None), r"bias is \[5\]; it must be \[4\]"),
    (((2, 8), (4, 8), None, (4,), None), r"the norm's weight is \[4\]; it must be \[8\]"),
    (((2, 8), (4, 8), None, None, (1, 4)), r"residual is \[1, 4\]; it must be \[2, 4\]")])
def test_a_linear_layer_whose_shapes_do_not_fit_is_refused(shapes, message):
    x, weight, bias, norm, residual = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ShapeError, match=message):
        reference.linear(x, weight, bias, norm=None if norm is None else (norm, 1e-5), residual=residual)


def test_a_linear_layer_of_two_dtypes_is_refused():
    with pytest.raises(ShapeError, match=r"bias is torch.float32, but x is torch.float16"):
        reference.linear(torch.zeros(2, 8).half(), torch.zeros(4, 8).half(), torch.zeros(4))


def test_a_gate_without_its_half_is_refused():
    with pytest.raises(ShapeError, match="gate and up together are 5 outputs"):
        reference.linear(torch.zeros(2, 8), torch.zeros(5, 8), is_gated=True)


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
    caches = torch.zeros(2, 1, kv_heads, 16, head_dim, dtype=dtype)
    reference.rotary_and_store(q, k, v, positions, cos_sin, as_model(*caches), torch.arange(tokens))

    expected = before.double().clone()
    for token, position in enumerate(positions.tolist()):
        for head in range(heads + kv_heads):
            for pair in range(rotated // 2):
                point = complex(*expected[token, head, [pair, pair + rotated // 2]].tolist())
                angle = angles[position, pair].item()
                turned = point * complex(math.cos(angle), math.sin(angle))
                expected[token, head, pair], expected[token, head, pair + rotated // 2] = turned.real, turned.imag
    assert_near(q, expected[:, :heads])
    stored = caches[:, 0, :, :tokens].transpose(1, 2)
    assert_near(stored[0], expected[:, heads:heads + kv_heads])
    assert torch.equal(stored[1], before[:, heads + kv_heads:])


def test_the_store_fills_the_named_slots_and_skips_padding():
    qkv = torch.randn(4, 6, 8)
    caches, no_turn = torch.zeros(2, 3, 2, 16, 8), torch.tensor([[[1.0], [0.0]]])
    q, k, v = qkv.split(2, dim=1)
    reference.rotary_and_store(q, k, v, torch.zeros(4).long(), no_turn, as_model(*caches),
                               torch.tensor([40, -1, 3, 4]))
    expected = torch.zeros_like(caches)
    for dense, cache in ((k, expected[0]), (v, expected[1])):
        cache[2, :, 8], cache[0, :, 3], cache[0, :, 4] = dense[0], dense[2], dense[3]
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
    batch, cache = make_decode([5], num_heads=5, num_kv_heads=1), torch.zeros(2, 2, 16, 64)
    with pytest.raises(ShapeError, match="5 query heads are not a multiple of 2 KV heads"):
        decode(dataclasses.replace(batch, cache=as_model(cache, cache)))


def test_a_head_dim_above_the_limit_is_refused():
    batch, cache = make_batch([5], [2]), torch.zeros(2, 2, 16, 512)
    with pytest.raises(ShapeError, match="at most 256"):
        prefill(dataclasses.replace(batch, q=torch.zeros(2, 4, 512), cache=as_model(cache, cache)))


def test_a_cache_of_another_dtype_is_refused():
    batch = make_decode([5])
    with pytest.raises(ShapeError, match=r"q is torch.float32, but the KV cache is torch.float16"):
        decode(dataclasses.replace(batch, cache=as_model(batch.cache.k.half(), batch.cache.v.half())))


def test_an_odd_gate_up_is_refused():
    with pytest.raises(ShapeError, match="must be even"):
        reference.silu_and_mul(torch.zeros(2, 7))


def test_a_rotation_wider_than_the_head_is_refused():
    with pytest.raises(ShapeError, match="at most head_dim=64"):
        decode(dataclasses.replace(make_decode([5]), cos_sin=torch.zeros(5, 2, 33)))
