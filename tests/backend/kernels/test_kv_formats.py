"""Every KV format through the store and the attention kernels, against formulas of its own.

Attention is compared with the naive formula over what the cache holds; what is stored, with the value that was given:
a level decides by a rounding that two right kernels may do differently."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from backend.errors import ShapeError
from backend.forward_batch import LayerKv
from backend.kernels import decode_attention, decode_quantised, kv_store, kv_unpack, prefill_attention, reference
from backend.kv_format import KvFormat, kv_format
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.decode_batch import make_decode
from tests.backend.kernels.paged_batch import make_batch, moved, naive_attention, poisoned_cache

QUANTISED = [KvFormat.INT8, KvFormat.INT4, KvFormat.CALIBRATED_INT8]

quantised = pytest.mark.parametrize("kv", QUANTISED, ids=lambda kv: kv.name)
every_kernel = pytest.mark.parametrize(
    "kernel", ["reference", "triton", pytest.param("cuda", marks=pytest.mark.hopper)])


def read(cache: LayerKv, which: int, block: int, offset: int) -> torch.Tensor:
    """The heads [K, D] of a token, by the words of kv_format.py."""
    stored = (cache.k, cache.v)[which][block, :, offset].cpu().double()
    if cache.format is KvFormat.INT4:
        stored = torch.cat((stored % 16, (stored / 16).floor()), -1)
    scales = cache.scales[block, :, offset] if cache.format.is_online else cache.scales
    scale, zero = scales[:, which].cpu().double().unbind(-1)
    return stored * scale[:, None] + zero[:, None]


def decode(batch, kernel, monkeypatch):
    """Attention of a decode batch, and then the values that its cache holds of the new tokens as what is expected."""
    if kernel == "triton":
        monkeypatch.setattr(decode_quantised, "fits", lambda *_: False)
    elif kernel == "cuda":
        assert decode_quantised.fits(batch.q, batch.cache)
    output = (reference if kernel == "reference" else decode_attention).paged_decode(*batch.arguments)
    for row, length in enumerate(batch.paged.context_lens.tolist()):
        if length:
            block, offset = divmod(int(batch.slot_mapping[row]), batch.cache.block_size)
            for which, dense in enumerate((batch.paged.keys, batch.paged.values)):
                new, given = read(batch.cache, which, block, offset), dense[row][-1]
                step = batch.cache.scales.double().cpu()
                step = step[block, :, offset, which, 0] if batch.cache.format.is_online else step[:, which, 0]
                assert ((new - given).abs().amax(-1) <= 1.001 * step).all()  # at most the level beside it
                dense[row][-1] = new
    return output


@quantised
@every_kernel
@pytest.mark.parametrize(("head_dim", "num_heads", "num_kv_heads"), [(64, 6, 2), (128, 2, 2)])
def test_decode_attends_to_what_the_cache_holds(dtype, device, monkeypatch, kv, kernel, head_dim, num_heads,
                                                num_kv_heads):
    if kernel == "cuda" and dtype == torch.float32:
        pytest.skip("made for two-byte values")
    batch = make_decode([1, 37, 0, 70], head_dim=head_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=dtype,
                        device=device, kv=kv)
    used = [0, 1, 3]
    assert_near(decode(batch, kernel, monkeypatch)[used], batch.expected()[used])


@quantised
@pytest.mark.parametrize("head_dim", [80, 96, 256])
def test_decode_of_other_head_dims(device, monkeypatch, kv, head_dim):
    batch = make_decode([40, 3], head_dim=head_dim, num_heads=2, num_kv_heads=1, dtype=torch.float16, device=device,
                        kv=kv)
    assert_near(decode(batch, "triton", monkeypatch), batch.expected())


@quantised
def test_decode_in_splits_with_values_that_are_not_rotated(device, monkeypatch, kv):
    usual = decode_attention._tiling
    monkeypatch.setattr(decode_attention, "_tiling", lambda *arguments: dataclasses.replace(
        usual(*arguments), num_shares=6, keys_tile=32, min_split=32))
    batch = make_decode([130, 33], 32, num_heads=10, dtype=torch.float16, device=device, kv=kv)
    assert_near(decode(batch, "triton", monkeypatch), batch.expected())


@quantised
@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize(("head_dim", "num_kv_heads"), [(64, 2), (80, 1), (256, 1)])
def test_prefill_attends_to_what_the_cache_holds(device, dtype, kv, kernel, head_dim, num_kv_heads):
    batch = make_batch([37, 20], [37, 9], head_dim=head_dim, num_heads=2, num_kv_heads=num_kv_heads, dtype=dtype,
                       device=device, kv=kv)
    prefill = reference if kernel == "reference" else prefill_attention
    assert_near(prefill.paged_prefill(*batch.prefill_arguments), naive_attention(batch))


def no_turn(num_positions):
    return torch.stack((torch.ones(num_positions, 32), torch.zeros(num_positions, 32)), dim=1)


@quantised
@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_a_stored_value_is_at_most_half_a_level_away_and_nothing_else_is_touched(device, dtype, kv, kernel):
    random = torch.Generator().manual_seed(2)
    cache = moved(poisoned_cache(kv, 3, 2, 16, 64, dtype, random), device)
    qkv = torch.randn(4, 6, 64, generator=random).to(dtype).to(device)
    qkv[1, 2] = 1.25  # a key whose values are all alike comes back as it is
    before = moved(cache, device)
    slots = torch.tensor([40, 3, -1, 31], device=device)
    store = reference if kernel == "reference" else kv_store
    store.rotary_and_store(*qkv.split(2, dim=1), torch.zeros(4, dtype=torch.int64, device=device),
                           no_turn(1).to(device), cache, slots)
    for which, heads in enumerate(qkv.split(2, dim=1)[1:]):
        for token in (0, 1, 3):
            block, offset = divmod(int(slots[token]), 16)
            stored, given = read(cache, which, block, offset), heads[token].double().cpu()
            top = 2**kv.num_bits - 1
            step = (given.amax(-1) - given.amin(-1)) / top if kv.is_online else cache.scales[:, which, 0].double().cpu()
            # Scale and zero are rounded to float16: a thousandth of the range, which is less than a level.
            slack = 2**-10 * given.abs().amax(-1) if kv.is_online else 1e-6
            assert ((stored - given).abs().amax(-1) <= 0.5 * step + slack).all()
    if kv.is_online:
        assert (read(cache, 0, 0, 3)[0] == 1.25).all()
    for name in ("k", "v", "scales") if kv.is_online else ("k", "v"):
        now, old = getattr(cache, name), getattr(before, name)
        for slot in (40, 3, 31):
            old[slot // 16, :, slot % 16] = now[slot // 16, :, slot % 16]
        assert torch.equal(now.nan_to_num(7.0), old.nan_to_num(7.0))


@pytest.mark.parametrize("kv", [KvFormat.INT8, KvFormat.INT4], ids=lambda kv: kv.name)
@every_kernel
def test_a_nan_stays_in_its_own_sequence(device, monkeypatch, kv, kernel):
    batch = make_decode([20, 50, 3], head_dim=64, dtype=torch.float16, device=device, kv=kv)
    batch.k[1, 0, 5] = batch.v[1, 1, 7] = torch.nan
    if kernel == "triton":
        monkeypatch.setattr(decode_quantised, "fits", lambda *_: False)
    output = (reference if kernel == "reference" else decode_attention).paged_decode(*batch.arguments)
    assert_near(output[[0, 2]], batch.expected()[[0, 2]])
    assert output[1].isnan().any()


@quantised
def test_an_unpacked_history_is_what_the_cache_holds(device, kv):
    batch = make_batch([37, 16, 50], head_dim=80, num_kv_heads=3, num_heads=3, dtype=torch.float16, device=device,
                       kv=kv)
    unpacked, tables = kv_unpack.unpack(batch.cache, batch.block_tables, batch.context_lens, 1, 2, torch.float16, 50,
                                        103)
    assert unpacked.num_kv_heads == 2
    used = [tables[row, block].item() for row, count in enumerate((3, 1, 4)) for block in range(count)]
    assert sorted(used) == list(range(8)) and unpacked.num_blocks >= 8
    for row, length in enumerate((37, 16, 50)):
        for which, dense in ((unpacked.k, batch.keys), (unpacked.v, batch.values)):
            blocks = which[tables[row, : -(-length // 16)].long()].transpose(1, 2).flatten(0, 1)[:length]
            assert_near(blocks, dense[row][:, 1:])


def test_the_unpacked_heads_at_a_time_fit_the_scratch(monkeypatch):
    cache = make_batch([64], head_dim=64, num_kv_heads=4, kv=KvFormat.INT4).cache
    head_bytes = (64 // 16 + 1) * 16 * 2 * 64 * 2
    for scratch, expected in ((head_bytes - 1, 0), (3 * head_bytes, 3), (99 * head_bytes, 4)):
        monkeypatch.setattr(kv_unpack, "KV_SCRATCH_BYTES", scratch)
        assert kv_unpack.heads_at_a_time(cache, torch.float16, 1, 64) == expected


@pytest.mark.hopper
@quantised
@pytest.mark.parametrize("heads_at_a_time", [1, 3, 8])
def test_prefill_on_hopper_unpacks_some_heads_at_a_time(monkeypatch, kv, heads_at_a_time):
    monkeypatch.setattr(prefill_attention, "HOPPER_MIN_SCORES", 0)
    monkeypatch.setattr(prefill_attention.prefill_hopper, "heads_at_a_time", lambda *_: heads_at_a_time)
    batch = make_batch([70, 300, 129], [70, 5, 1], head_dim=128, num_heads=16, num_kv_heads=8, block_size=64,
                       dtype=torch.bfloat16, device="cuda", kv=kv)
    assert_near(prefill_attention.paged_prefill(*batch.prefill_arguments), naive_attention(batch))


@pytest.mark.parametrize("change", [
    {"scales": None}, {"format": KvFormat.AS_MODEL}, {"format": KvFormat.CALIBRATED_INT8},
    {"scales": torch.zeros(4, 2, 16, 2)}])
def test_a_cache_whose_scales_are_not_its_format_s_is_refused(change):
    batch = make_batch([20], kv=KvFormat.INT8)
    with pytest.raises(ShapeError, match="scales"):
        reference.paged_prefill(batch.q, dataclasses.replace(batch.cache, **change), *batch.prefill_arguments[2:])


def test_calibrated_scales_decide_what_4_means():
    assert [kv_format(policy, has_calibrated_scales=False) for policy in (0, 8, 4)] == [
        KvFormat.AS_MODEL, KvFormat.INT8, KvFormat.INT4]
    assert [kv_format(policy, has_calibrated_scales=True) for policy in (0, 8, 4)] == [
        KvFormat.AS_MODEL, KvFormat.INT8, KvFormat.CALIBRATED_INT8]


def test_a_head_takes_the_bytes_of_its_values_and_of_four_float16():
    assert [kv.head_bytes(128, 2) for kv in KvFormat] == [512, 264, 136, 256]
