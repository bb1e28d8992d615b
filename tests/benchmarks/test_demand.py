"""Demand: floors that are known from elsewhere, and their parts by hand."""

from __future__ import annotations

import pytest

from backend.memory_plan import num_linear_weights
from benchmarks.demand import Demand
from benchmarks.shapes import SHAPES, with_weights
from benchmarks.workloads import MIXED_WORK
from tests.benchmarks.tiny import TINY

READ_BYTES_S, FLOPS_S = 4.3e12, 790e12
ROUNDED = 0.006  # the published limits have three digits
OUR_GROUPS = 0.03  # those of 4 bits count 2.5 bytes for a group's scale and zero point, of which our kernels keep 4


def decode_rate(demand: Demand, batch_size: int) -> float:
    work = [(1, 2048)] * batch_size
    return batch_size * 2048 * READ_BYTES_S / (2048 * demand.step_bytes() + demand.decode_kv_bytes(work))


@pytest.mark.parametrize(("shape", "limits"), [("m7", (312, 3155, 5784, 7300)), ("g8", (290, 4080, 11800, 22400))])
def test_decoding_from_nothing_is_limited_as_published(shape, limits):
    demand = Demand(SHAPES[shape])
    assert [decode_rate(demand, size) for size in (1, 16, 64, 256)] == pytest.approx(limits, rel=ROUNDED)


@pytest.mark.parametrize(("shape", "limits"), [("m7", (1033, 5632, 7245)), ("g8", (952, 10530, 21200))])
def test_decoding_with_4_bit_weights_is_limited_as_published(shape, limits):
    demand = Demand(with_weights(SHAPES[shape], "awq"))
    assert [decode_rate(demand, size) for size in (1, 16, 64)] == pytest.approx(limits, rel=OUR_GROUPS)
    assert demand.flops([(2048, 1)]) == Demand(SHAPES[shape]).flops([(2048, 1)])


@pytest.mark.parametrize(("shape", "limit"), [("m7", 7490), ("g8", 13600)])
def test_mixed_requests_are_limited_as_published(shape, limit):
    demand = Demand(SHAPES[shape])
    seconds = demand.decode_kv_bytes(MIXED_WORK) / READ_BYTES_S + demand.flops(MIXED_WORK) / FLOPS_S
    assert sum(num_new for _, num_new in MIXED_WORK) / seconds == pytest.approx(limit, rel=ROUNDED)


@pytest.mark.parametrize(("shape", "one", "sixteen"), [("m7", 52300, 58600), ("g8", 49000, 54500)])
def test_prefill_is_limited_as_published(shape, one, sixteen):
    demand = Demand(SHAPES[shape])
    assert 8192 * FLOPS_S / demand.flops([(8192, 1)]) == pytest.approx(one, rel=ROUNDED)
    assert 16 * 2048 * FLOPS_S / demand.flops([(2048, 1)] * 16) == pytest.approx(sixteen, rel=ROUNDED)


def test_flops_of_one_token_are_two_per_weight_and_attention_to_itself():
    demand = Demand(TINY)
    num_weights = num_linear_weights(TINY) + TINY.vocab_size * TINY.hidden_size
    assert demand.flops([(1, 1)]) == 2 * num_weights + 4 * TINY.num_layers * TINY.num_heads * TINY.head_dim


def test_quantised_kv_takes_its_bits():
    assert [Demand(TINY, policy).kv_token_bytes() for policy in (0, 8, 4)] == [256, 160, 96]
