"""Linear layers with four-bit weights against the reference in float64, through each kernel that multiplies them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backend.kernels import reference, w4_linear, w4_skinny, w4_stream_k, w4_triton, w4_weight
from tests.backend.kernels.awq import published_weight
from tests.backend.kernels.comparison import assert_near
from tests.backend.kernels.fused_linear import EPS, FUSIONS, check_fused

HALF = [torch.float16, torch.bfloat16]
GROUP_SIZES = [32, 64, 128]
LAYOUTS = [w4_stream_k.Layout(*tile) for tile in w4_stream_k.STEP_US] + [w4_stream_k.Layout(*layout) for layout in (
    (64, 256), (128, 256), (64, 128, 1, 1, 3), (256, 128, 1, 1, 1))]
LAYOUTS_IN_PARTS = [w4_stream_k.Layout(*tile, 2, splits) for tile, splits in zip(
    w4_stream_k.STEP_US, itertools.cycle((1, 2)), strict=False)] + [w4_stream_k.Layout(64, 128, 1, 4, 1)]


def check(kernel: Callable[..., Tensor], num_tokens: int, size: int, num_outputs: int, group_size: int,
          fusion: tuple[int, ...], device: str, dtype: torch.dtype, *, is_rounded: bool = False) -> None:
    """The kernel's result equals the reference's in float64, and is in the residual where there is one.

    is_rounded  the kernel is to round weights to `dtype` before it multiplies them"""
    weight = w4_weight.pack_w4(*published_weight(size, num_outputs, group_size, device).tensors)
    x = torch.randn(num_tokens, size).to(device, dtype)
    values = w4_weight.dequantise(weight, dtype if is_rounded else torch.float64).double()
    check_fused(kernel, x, weight, values, fusion)


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
def test_tokens_are_normalised_multiplied_gated_and_added(num_tokens, fusion, device, dtype):
    check(w4_linear.linear_w4, num_tokens, 128, 48, 64, fusion, device, dtype, is_rounded=True)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("num_tokens", [2, 65])
def test_groups_of_any_size_have_their_own_scales(num_tokens, group_size, device, dtype):
    check(w4_linear.linear_w4, num_tokens, 256, 24, group_size, (0, 0, 0, 0), device, dtype, is_rounded=True)


@pytest.mark.parametrize(("size", "num_outputs"), [(32, 8), (96, 40), (192, 56), (416, 136)])
@pytest.mark.parametrize("num_tokens", [2, 65])
def test_sizes_that_do_not_fill_a_piece_are_multiplied(num_tokens, size, num_outputs, device, dtype):
    check(w4_linear.linear_w4, num_tokens, size, num_outputs, 32, (0, 1, 1, 0), device, dtype, is_rounded=True)


def test_a_dense_part_is_no_larger_than_its_scratch(device, monkeypatch):
    monkeypatch.setattr(w4_linear, "SCRATCH_BYTES", 7 * 2 * 128)
    check(w4_linear.linear_w4, 65, 128, 40, 32, (0, 0, 0, 0), device, torch.float16, is_rounded=True)


def test_a_dequantised_part_is_the_references(device, dtype):
    weight = w4_weight.pack_w4(*published_weight(192, 40, 64, device).tensors)
    part = torch.empty((19, 192), dtype=dtype, device=device)
    w4_triton.dequantise(weight, 13, part)
    assert torch.equal(part, w4_weight.dequantise(weight, dtype)[13:32])


def test_no_tokens_give_no_results(device, dtype):
    weight = w4_weight.pack_w4(*published_weight(128, 16, 32, device).tensors)
    assert w4_linear.linear_w4(torch.zeros(0, 128, device=device, dtype=dtype), weight).shape == (0, 16)


@pytest.mark.hopper
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 8, 9, 16])
def test_few_tokens_are_normalised_multiplied_gated_and_added(num_tokens, fusion, half, skinny):
    check(w4_linear.linear_w4, num_tokens, 2048, 224, 128, fusion, "cuda", half)
    assert len(skinny) == 1


@pytest.mark.hopper
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("size", [1024, 1120, 4096, 5504, 11008, 14336])
@pytest.mark.parametrize("num_tokens", [1, 7, 13])
def test_few_tokens_of_any_size_are_multiplied(num_tokens, size, group_size, skinny):
    check(w4_linear.linear_w4, num_tokens, size // group_size * group_size, 96, group_size, (1, 0, 1, 0), "cuda",
          torch.bfloat16)
    assert len(skinny) == 1 or num_tokens > 8


@pytest.mark.hopper
@pytest.mark.parametrize("num_outputs", [16, 48, 4112, 22016, 28672])
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_any_number_of_outputs_is_computed(num_tokens, num_outputs, skinny):
    check(w4_linear.linear_w4, num_tokens, 1024, num_outputs, 128, (0, 1, 0, 1), "cuda", torch.bfloat16)
    assert len(skinny) == 1 or num_tokens > 8


@pytest.mark.hopper
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("num_tokens", [1, 6, 12])
def test_every_division_of_the_inputs_gives_the_same_sums(num_tokens, cluster):
    def kernel(*operands, **options):
        return w4_skinny.launch(w4_skinny.Layout(cluster, 3, 2), *operands, **options)

    check(kernel, num_tokens, 1664, 1056, 64, (1, 1, 1, 1), "cuda", torch.float16)


@pytest.mark.hopper
def test_large_inputs_do_not_overflow_float16():
    weight = w4_weight.pack_w4(*published_weight(1024, 64, 128, "cuda").tensors)
    x = torch.full((3, 1024), 6e4, device="cuda", dtype=torch.float16)
    norm = torch.full((1024,), 8.0, device="cuda", dtype=torch.float16), EPS
    result = w4_linear.linear_w4(x, weight, norm=norm)
    assert_near(result, reference.linear_w4(x.double(), weight, norm=(norm[0].double(), EPS)))


@pytest.mark.hopper
def test_layers_that_begin_early_compute_what_they_compute_one_by_one():
    size, layers = 2048, 24
    weights = [w4_weight.pack_w4(*published_weight(size, size, 128, "cuda").tensors) for _ in range(4)]
    norm = (torch.ones(size, device="cuda", dtype=torch.bfloat16), EPS)
    for num_tokens in (1, 7, 16, 40):
        start = torch.randn(num_tokens, size, device="cuda", dtype=torch.bfloat16)
        hidden = start.clone()

        def forward(hidden, between=lambda: None):
            for layer in range(layers):
                y = w4_linear.linear_w4(hidden, weights[layer % 4], norm=norm)
                between()
                w4_linear.linear_w4(y, weights[(layer + 1) % 4], residual=hidden)
                between()

        forward(hidden, torch.cuda.synchronize)
        expected = hidden.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward(hidden)
        for _ in range(10):
            hidden.copy_(start)
            graph.replay()
            assert torch.equal(hidden, expected)


@pytest.mark.hopper
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("num_tokens", [17, 64, 129, 300, 2100])
def test_many_tokens_are_normalised_multiplied_gated_and_added(num_tokens, fusion, half):
    check(w4_linear.linear_w4, num_tokens, 1024, 416, 128, fusion, "cuda", half, is_rounded=True)


@pytest.mark.hopper
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("is_gated", [0, 1])
@pytest.mark.parametrize("num_tokens", [20, 50, 90, 200])
def test_many_tokens_are_multiplied_with_groups_of_any_size(num_tokens, is_gated, half, group_size):
    check(w4_linear.linear_w4, num_tokens, 992 // group_size * group_size, 192, group_size, (0, 0, is_gated, 0), "cuda",
          half, is_rounded=True)


@pytest.mark.hopper
@pytest.mark.parametrize(("layout", "is_gated"), [*itertools.product(LAYOUTS, (0, 1)),
                                                  *itertools.product(LAYOUTS_IN_PARTS, (0,))], ids=str)
@pytest.mark.parametrize(("num_tokens", "size", "num_outputs"), [(200, 640, 4128), (70, 4000, 96), (530, 2048, 2080)])
def test_many_tokens_are_multiplied_however_they_are_divided(num_tokens, size, num_outputs, layout, is_gated):
    def kernel(x, weight, bias, *, norm, is_gated, residual):
        return w4_stream_k.launch(layout, x, weight, bias, is_gated=is_gated, residual=residual)

    check(kernel, num_tokens, size // 32 * 32, num_outputs, 32 if size % 128 else 128, (0, 0, is_gated, not is_gated),
          "cuda", torch.bfloat16, is_rounded=True)


@pytest.mark.parametrize("num_tokens", [17, 33, 64, 96, 130, 256, 400, 512, 640, 2048])
@pytest.mark.parametrize(("size", "num_outputs", "is_gated"), [
    (4096, 4096, False), (4096, 6144, False), (14336, 4096, False), (4096, 28672, True), (64, 64, False),
    (256, 32, True)])
def test_a_layout_is_one_that_can_be_launched(num_tokens, size, num_outputs, is_gated):
    layout = w4_stream_k.best_layout(num_tokens, size, num_outputs, is_gated, 132)
    tiles = -(-num_tokens // layout.tokens) * -(-num_outputs // layout.rows)
    assert layout.parts * tiles * layout.splits <= 132 * layout.residents
    assert layout.parts == 1 or 0 < layout.parts * layout.splits <= -(-size // 128)
    assert layout.parts == 1 or not is_gated


@pytest.mark.parametrize("tile", w4_stream_k.STEP_US, ids=str)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_block_has_no_more_memory_than_its_share_of_a_multiprocessor(tile, group_size, parts):
    layout = w4_stream_k.Layout(*tile, parts)
    stages = w4_stream_k._macros(layout, group_size, False, True)["STAGES"]
    used = stages * w4_stream_k._stage_bytes(layout, group_size) + w4_stream_k._other_bytes(layout)
    assert stages >= 2 + (layout.rows > 128)
    assert used <= 227 * 1024 // layout.residents
    assert parts == 1 or layout.rows * layout.tokens * 4 <= stages * 2 * 128 * layout.tokens  # where sums are received


@pytest.mark.parametrize(("hidden", "inner", "num_kv"), [(4096, 11008, 4096), (4096, 14336, 1024), (2048, 8192, 512)])
def test_a_multiprocessor_never_has_room_for_two_blocks_of_one_layer(hidden, inner, num_kv, monkeypatch):
    monkeypatch.setattr(w4_skinny, "num_multiprocessors", lambda device: 132)
    monkeypatch.setattr(w4_skinny.cuda_source, "max_clusters", lambda cluster, *_: {4: 30, 8: 15}[cluster])
    device = torch.device("cuda", 99)  # nobody else's entries in the caches

    def block_bytes(size, num_outputs, tokens, *, has_norm=False, is_gated=False):
        product = w4_skinny.Product(size, num_outputs, 128, tokens, True, has_norm, False, is_gated, not has_norm)
        layout = w4_skinny.best_layout(product, device)
        return w4_skinny.shared_bytes(layout, product, device) + w4_skinny.BLOCK_BYTES

    for tokens in w4_skinny.TOKENS:
        added = [block_bytes(hidden, hidden, tokens), block_bytes(inner, hidden, tokens)]
        before = [block_bytes(hidden, hidden + 2 * num_kv, tokens, has_norm=True),
                  block_bytes(hidden, 2 * inner, tokens, has_norm=True, is_gated=True)]
        assert 2 * min(added) > w4_skinny.MULTIPROCESSOR_BYTES
        if tokens == 1:  # one of each, so that one reads ahead
            assert max(added) + max(before) <= w4_skinny.MULTIPROCESSOR_BYTES < min(added) + 2 * min(before)
        else:
            assert 2 * min(before) > w4_skinny.MULTIPROCESSOR_BYTES


def test_there_is_no_such_kernel_on_a_cpu():
    assert not w4_skinny.runs_on(torch.device("cpu"))


@pytest.fixture
def skinny(monkeypatch):
    """The calls of the kernel for few tokens, which goes on computing."""
    calls = []
    original = w4_skinny.w4_skinny

    def recorded(*operands, **options):
        calls.append(operands)
        return original(*operands, **options)

    monkeypatch.setattr(w4_skinny, "w4_skinny", recorded)
    return calls
