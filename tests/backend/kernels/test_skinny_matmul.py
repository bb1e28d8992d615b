"""The product of few tokens in CUDA C++ against the reference in float64, and when it is chosen."""

from __future__ import annotations

import pytest
import torch

from backend.kernels import linear, reference, skinny_matmul
from tests.backend.kernels.fused_linear import EPS, FUSIONS
from tests.backend.kernels.test_linear import check

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.hopper
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("num_tokens", [2, 16, 17, 32])
def test_tokens_are_normalised_multiplied_gated_and_added(num_tokens, fusion, half, skinny):
    check(linear.linear, num_tokens, 2080, 200, fusion, "cuda", half)
    assert len(skinny) == 1


@pytest.mark.hopper
@pytest.mark.parametrize("size", [256, 288, 2048, 4096, 5504, 7168, 11008, 12288, 14336, 18944])
def test_inputs_of_any_size_are_multiplied(size, skinny):
    check(linear.linear, 7, size, 84, (1, 0, 1, 0), "cuda", torch.bfloat16)
    assert len(skinny) == 1


@pytest.mark.hopper
@pytest.mark.parametrize("num_outputs", [4, 60, 4100, 33000])
def test_any_number_of_outputs_is_computed(num_outputs, skinny):
    check(linear.linear, 5, 512, num_outputs, (0, 1, 0, 1), "cuda", torch.bfloat16)
    assert len(skinny) == 1


@pytest.mark.hopper
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_tokens_result_does_not_depend_on_the_other_tokens(is_gated):
    x, weight = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((16, 1024), (512, 1024)))
    norm = (torch.rand(1024, device="cuda", dtype=torch.bfloat16), EPS)
    alone = linear.linear(x[:2], weight, norm=norm, is_gated=is_gated)
    x[2:] = torch.randn_like(x[2:]) * 100
    assert torch.equal(linear.linear(x, weight, norm=norm, is_gated=is_gated)[:2], alone)


@pytest.mark.hopper
def test_logits_keep_their_precision(skinny):
    x, weight, factor = (torch.randn(shape, device="cuda", dtype=torch.bfloat16)
                         for shape in ((3, 512), (1000, 512), (512,)))
    logits = linear.logits(x, weight, (factor, EPS))
    exact = reference.linear(x.double(), weight.double(), norm=(factor.double(), EPS))
    assert len(skinny) == 1 and logits.dtype == torch.float32
    assert (logits.double() - exact).abs().max() / exact.abs().max() < 2**-8  # x times factor is rounded to bfloat16


@pytest.mark.hopper
def test_layers_that_begin_early_compute_what_they_compute_one_by_one():
    size, layers = 2048, 24
    weights = torch.randn(layers, size, size, device="cuda", dtype=torch.bfloat16) / size**0.5
    norm = (torch.ones(size, device="cuda", dtype=torch.bfloat16), EPS)
    start = torch.randn(16, size, device="cuda", dtype=torch.bfloat16)
    hidden = start.clone()

    def forward(between=lambda: None):
        for layer in range(layers):
            y = linear.linear(hidden, weights[layer], norm=norm)
            between()
            linear.linear(y, weights[layer - 1], residual=hidden)
            between()

    forward(torch.cuda.synchronize)
    expected = hidden.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    for _ in range(10):
        hidden.copy_(start)
        graph.replay()
        assert torch.equal(hidden, expected)


@pytest.mark.parametrize("num_tokens", [2, 16, 17, 32])
def test_a_layout_fits_into_shared_memory_and_gives_every_warp_inputs(num_tokens):
    for size in range(32, 32768, 32):
        layout = skinny_matmul._layout(size, num_tokens)
        if layout is None:
            assert size < 256 or (num_tokens > 16 and not 2048 <= size <= 12288)
            continue
        chunks, tiles = size // 32, -(-num_tokens // 16)
        assert chunks // skinny_matmul.CLUSTER >= layout.k_groups
        assert layout.k_groups * layout.row_groups == skinny_matmul.WARPS
        assert skinny_matmul._shared_bytes(chunks, layout, tiles) <= 227 * 1024


@pytest.mark.parametrize(("num_tokens", "size", "num_outputs", "dtype"), [
    (1, 4096, 64, torch.bfloat16), (33, 4096, 64, torch.bfloat16), (32, 14336, 64, torch.bfloat16),
    (8, 4100, 64, torch.bfloat16), (8, 128, 64, torch.bfloat16), (8, 4096, 66, torch.bfloat16),
    (8, 4096, 64, torch.float32)])
def test_other_products_are_left_to_other_kernels(num_tokens, size, num_outputs, dtype, monkeypatch):
    monkeypatch.setattr(skinny_matmul, "runs_on", lambda device: True)
    x, weight = torch.zeros(num_tokens, size, dtype=dtype), torch.zeros(num_outputs, size, dtype=dtype)
    assert not skinny_matmul.fits(x, weight)
    assert skinny_matmul.fits(torch.zeros(8, 4096, dtype=torch.bfloat16), torch.zeros(64, 4096, dtype=torch.bfloat16))


def test_there_is_no_such_kernel_on_a_cpu():
    assert not skinny_matmul.runs_on(torch.device("cpu"))


def test_without_this_kernel_the_others_compute_the_same(monkeypatch, device):
    monkeypatch.setattr(skinny_matmul, "runs_on", lambda device: False)
    check(linear.linear, 8, 512, 64, (1, 1, 1, 1), device, torch.float16)


@pytest.fixture
def skinny(monkeypatch):
    """The calls of the kernel under test, which goes on computing."""
    calls = []
    original = skinny_matmul.skinny_matmul

    def recorded(*operands, **options):
        calls.append(operands)
        return original(*operands, **options)

    monkeypatch.setattr(skinny_matmul, "skinny_matmul", recorded)
    return calls
