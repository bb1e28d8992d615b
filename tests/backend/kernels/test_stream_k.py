"""The product of some dozens of tokens in CUDA C++ against the reference in float64, and when it is chosen."""

from __future__ import annotations

import pytest
import torch

from backend.kernels import linear, stream_k
from backend.kernels.stream_k import Layout
from tests.backend.kernels.test_linear import check

HALF = [torch.float16, torch.bfloat16]
LAYOUTS = [Layout(64), Layout(96), Layout(128), Layout(160, sharers=2), Layout(192, sharers=2), Layout(224, sharers=2),
           Layout(256, sharers=2), Layout(128, sharers=2, shares_weights=True),
           Layout(256, sharers=2, shares_weights=True), Layout(64, parts=2, splits=1), Layout(96, parts=2, splits=3),
           Layout(64, splits=3), Layout(96, sharers=2, shares_weights=True, splits=2)]
GATED_LAYOUTS = [layout for layout in LAYOUTS if layout.parts == 1]
MULTIPROCESSORS = 132


@pytest.mark.hopper
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("fusion", [(0, 0, 0, 0), (0, 1, 0, 1)], ids=str)
def test_tokens_are_multiplied_and_added(fusion, layout, half):
    for num_tokens in (33, layout.tokens, 300):
        check(forced(layout), num_tokens, 1000, 1048, fusion, "cuda", half)


@pytest.mark.hopper
@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("layout", GATED_LAYOUTS, ids=str)
@pytest.mark.parametrize("fusion", [(0, 0, 1, 0), (0, 1, 1, 0)], ids=str)
def test_tokens_are_multiplied_and_gated(fusion, layout, half):
    for num_tokens in (50, 300):
        check(forced(layout), num_tokens, 2048, 2 * 1000, fusion, "cuda", half)


@pytest.mark.hopper
@pytest.mark.parametrize("size", [384, 392, 4096, 11008])
@pytest.mark.parametrize("layout", [Layout(64), Layout(64, parts=2, splits=2)], ids=str)
def test_inputs_of_any_size_are_multiplied(layout, size):
    check(forced(layout), 40, size, 4096, (0, 0, 0, 1), "cuda", torch.bfloat16)


@pytest.mark.hopper
@pytest.mark.parametrize("layout", [Layout(64), Layout(256, sharers=2), Layout(128, sharers=2, shares_weights=True)],
                         ids=str)
def test_whole_waves_come_before_tiles_that_are_divided(layout):
    check(forced(layout), 700, 128, 40008, (0, 0, 0, 0), "cuda", torch.bfloat16)


@pytest.mark.hopper
@pytest.mark.parametrize(("num_tokens", "size", "num_outputs", "fusion"), [
    (64, 2048, 22016, (1, 0, 1, 0)), (256, 2048, 22016, (1, 1, 1, 0)), (500, 2048, 22016, (1, 0, 1, 0)),
    (640, 2048, 22016, (1, 0, 1, 0)), (64, 4096, 4096, (0, 1, 0, 1)), (200, 8192, 4096, (0, 0, 0, 1))])
def test_a_layer_goes_through_this_kernel_behind_its_norm(num_tokens, size, num_outputs, fusion, chosen):
    check(linear.linear, num_tokens, size, num_outputs, fusion, "cuda", torch.bfloat16)
    assert len(chosen) == 1


@pytest.mark.hopper
@pytest.mark.parametrize("layout", [Layout(64), Layout(64, parts=2, splits=2), Layout(64, splits=4)], ids=str)
def test_layers_that_begin_early_in_graphs_on_two_streams_compute_what_they_compute_one_by_one(layout):
    size, layers = 4096, 8
    weights = torch.randn(layers, size, size, device="cuda", dtype=torch.bfloat16) / size**0.5
    start = torch.randn(64, size, device="cuda", dtype=torch.bfloat16)
    product = forced(layout)

    def forward(hidden, between=lambda: None):
        for layer in range(layers):
            y = product(hidden, weights[layer])
            between()
            product(y, weights[layer - 1], residual=hidden)
            between()

    expected = start.clone()
    forward(expected, torch.cuda.synchronize)
    streams, graphs = [torch.cuda.Stream() for _ in range(2)], [torch.cuda.CUDAGraph() for _ in range(2)]
    hidden = [start.clone() for _ in graphs]
    for graph, tokens in zip(graphs, hidden, strict=True):
        with torch.cuda.graph(graph):
            forward(tokens)
    for _ in range(10):
        for tokens in hidden:
            tokens.copy_(start)
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for tokens in hidden:
            assert torch.equal(tokens, expected)


@pytest.mark.hopper
def test_a_product_is_the_same_every_time():
    x, weight = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((256, 4096), (22016, 4096)))
    first = linear.linear(x, weight, is_gated=True)
    for _ in range(20):
        assert torch.equal(linear.linear(x, weight, is_gated=True), first)


@pytest.mark.parametrize("num_tokens", [33, 64, 65, 97, 129, 161, 224, 256, 257, 304, 448, 480, 512, 560, 8192])
@pytest.mark.parametrize(("size", "num_outputs", "is_gated"), [
    (4096, 28672, True), (4096, 22016, True), (4096, 4096, False), (14336, 4096, False), (11008, 4096, False)])
def test_a_layout_fits_the_tokens_and_the_multiprocessors_and_is_compiled_beforehand(num_tokens, size, num_outputs,
                                                                                     is_gated):
    layout = stream_k._layout(num_tokens, size, num_outputs, is_gated, MULTIPROCESSORS)
    if layout is None:
        assert num_tokens == 257 if is_gated else num_tokens > stream_k.FEW_TOKENS
        return
    assert layout in (stream_k._GATED if is_gated else stream_k._NOT_GATED)
    assert num_tokens <= -(-num_tokens // layout.tokens) * layout.tokens <= max(256, 1.1 * num_tokens)
    if layout.splits:  # all at the same time: clusters of four blocks would leave some multiprocessors out
        assert layout.sharers * layout.parts == 2
        assert num_outputs // 128 * layout.splits * 2 <= MULTIPROCESSORS


@pytest.mark.parametrize("tokens", stream_k.TILES)
def test_a_ring_of_stages_fits_into_shared_memory_and_into_it_a_tiles_sums(tokens):
    ring = stream_k._stages(tokens) * stream_k._stage_bytes(tokens)
    assert stream_k._stages(tokens) >= 4
    assert tokens * 128 * 4 <= ring <= 227 * 1024 - stream_k.TURNED_BYTES - stream_k.OTHER_SHARED_BYTES


@pytest.mark.parametrize(("num_tokens", "size", "num_outputs", "is_gated", "dtype"), [
    (32, 4096, 28672, True, torch.bfloat16), (64, 4096, 28672, True, torch.float32),
    (64, 4100, 28672, True, torch.bfloat16), (64, 4096, 28680, True, torch.bfloat16),
    (64, 4096, 1024, True, torch.bfloat16), (64, 1024, 28672, True, torch.bfloat16),
    (64, 4096, 6144, False, torch.bfloat16), (512, 4096, 4096, False, torch.bfloat16)])
def test_other_products_are_left_to_other_kernels(num_tokens, size, num_outputs, is_gated, dtype, monkeypatch):
    monkeypatch.setattr(stream_k, "runs_on", lambda device: True)
    monkeypatch.setattr(stream_k, "num_multiprocessors", lambda device: MULTIPROCESSORS)
    x, weight = torch.zeros(num_tokens, size, dtype=dtype), torch.zeros(num_outputs, size, dtype=dtype)
    assert stream_k.choose_layout(x, weight, is_gated, None) is None


def test_there_is_no_such_kernel_on_a_cpu():
    assert not stream_k.runs_on(torch.device("cpu"))


@pytest.mark.hopper
def test_without_this_kernel_cublas_computes_the_same(monkeypatch):
    monkeypatch.setattr(stream_k, "runs_on", lambda device: False)
    check(linear.linear, 64, 2048, 22016, (1, 0, 1, 0), "cuda", torch.bfloat16)


def forced(layout):
    """The kernel with this layout, as linear is called."""

    def product(x, weight, bias=None, *, norm=None, is_gated=False, residual=None):
        assert norm is None
        return stream_k.stream_k(x, weight, bias, is_gated=is_gated, residual=residual, layout=layout)

    return product


@pytest.fixture
def chosen(monkeypatch):
    """The layouts with which the kernel under test is called, which goes on computing."""
    layouts = []
    original = stream_k.stream_k

    def recorded(*operands, layout, **options):
        layouts.append(layout)
        return original(*operands, layout=layout, **options)

    monkeypatch.setattr(stream_k, "stream_k", recorded)
    return layouts
