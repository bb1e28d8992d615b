"""Every kernel in CUDA C++ compiles for Hopper, with what its module defines: that takes NVRTC, but no GPU."""

from __future__ import annotations

import pytest
import torch

from backend.kernels import (
    cuda_source,
    decode_cluster,
    decode_quantised,
    matvec_cuda,
    skinny_matmul,
    stream_k,
    w4_skinny,
    w4_stream_k,
)
from backend.kernels.cuda_source import CudaKernel
from backend.kernels.w4_skinny import Product

pytest.importorskip("cuda.bindings.nvrtc", reason="pip install cuda-bindings nvidia-cuda-nvrtc", exc_type=ImportError)

HOPPER = torch.device("cuda", 7)  # which no other test has: kernels are kept by device
MULTIPROCESSORS = 132


class Compiled(CudaKernel):
    """A kernel that no device has loaded."""

    def max_clusters(self, cluster: int) -> int:
        return MULTIPROCESSORS // cluster - 1


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[str]:
    """The names of what was compiled for use, in a cache of its own; multiprocessors and clusters are an H200's."""
    names: list[str] = []

    def loaded(code: bytes, name: str, device: torch.device, threads: int, shared_bytes: int) -> CudaKernel:
        assert code.startswith(b"\x7fELF") and name.encode() in code
        assert 0 < threads <= 1024 and shared_bytes <= 227 * 1024
        names.append(name)
        return Compiled(None, threads, shared_bytes)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_source, "_loaded", loaded)
    monkeypatch.setattr(cuda_source, "compile_together", lambda *_: None)  # of more than what is asked for
    monkeypatch.setattr(cuda_source, "_architecture", lambda device: "--gpu-architecture=sm_90a")
    for module in (decode_cluster, decode_quantised, matvec_cuda, skinny_matmul, stream_k, w4_skinny, w4_stream_k):
        module._kernel.cache_clear()
        if hasattr(module, "num_multiprocessors"):
            monkeypatch.setattr(module, "num_multiprocessors", lambda device: MULTIPROCESSORS)
    return names


@pytest.mark.parametrize("is_half", [False, True])
def test_matvec_compiles_in_every_layout(is_half: bool, compiled: list[str]) -> None:
    for size, num_outputs, norm, bias, residual, gated, is_float in (
            (4096, 6144, True, True, False, False, False), (4096, 28672, True, False, False, True, False),
            (11008, 4096, False, False, True, False, False), (14336, 4096, False, False, True, False, False),
            (896, 151936, True, False, False, False, True)):
        layout = matvec_cuda._layout(size, num_outputs, gated)
        matvec_cuda._kernel(size, layout, HOPPER, is_half, norm, bias, residual, gated, is_float)
    assert compiled == ["matvec"] * 5


@pytest.mark.parametrize("is_half", [False, True])
def test_skinny_matmul_compiles_with_what_is_fused(is_half: bool, compiled: list[str]) -> None:
    for size, num_tokens, norm, bias, residual, gated, is_float in (
            (4096, 8, not is_half, True, False, False, False), (4096, 32, not is_half, False, False, True, False),
            (11008, 16, False, False, True, False, False), (14336, 2, False, False, True, False, False),
            (4096, 8, False, False, False, False, True)):
        layout = skinny_matmul._layout(size, num_tokens)
        skinny_matmul._kernel(size, layout, -(-num_tokens // skinny_matmul.TOKEN_TILE), HOPPER, is_half, norm, bias,
                              residual, gated, is_float)
    assert compiled == ["skinny_matmul"] * 5


@pytest.mark.parametrize("is_half", [False, True])
def test_stream_k_compiles_in_its_layouts(is_half: bool, compiled: list[str]) -> None:
    gated, others = stream_k._GATED, stream_k._NOT_GATED
    for layout in (*gated[is_half::4], *others[is_half::2]):
        stream_k._kernel(layout.tokens, layout.sharers, layout.shares_weights, layout.parts, layout in gated, is_half,
                         HOPPER)
    assert len(compiled) >= 4 and set(compiled) == {"stream_k"}


@pytest.mark.parametrize(("group_size", "is_half"), [(128, True), (128, False), (64, True), (32, True)])
def test_w4_skinny_compiles_for_every_group_size(group_size: int, is_half: bool, compiled: list[str]) -> None:
    for size, num_outputs, tokens, norm, bias, gated, added in (
            (4096, 6144, 1, True, True, False, False), (4096, 28672, 8, True, False, True, False),
            (14336, 4096, 16, False, False, False, True), (4096, 4096, 1, False, False, False, True)):
        product = Product(size, num_outputs, group_size, tokens, is_half, norm, bias, gated, added)
        w4_skinny._kernel(product, None, HOPPER)
    assert compiled.count("w4_skinny") == 4


@pytest.mark.parametrize(("group_size", "is_half"), [(128, True), (128, False), (64, True), (32, True)])
def test_w4_stream_k_compiles_for_every_group_size(group_size: int, is_half: bool, compiled: list[str]) -> None:
    for tokens, rows, residents, parts, is_gated in (
            (32, 128, 2, 1, False), (64, 128, 2, 2, False), (128, 192, 1, 1, True), (256, 128, 1, 2, False)):
        w4_stream_k._kernel(tokens, rows, residents, parts, group_size, is_gated, is_half, HOPPER)
    assert compiled == ["w4_stream_k"] * 4


@pytest.mark.parametrize(("is_half", "is_online"), [(False, True), (True, False)])
@pytest.mark.parametrize("bits", [8, 4])
def test_decode_quantised_compiles_for_every_format(bits: int, is_online: bool, is_half: bool,
                                                    compiled: list[str]) -> None:
    for head_dim, half, num_heads, num_kv_heads in ((128, 64, 32, 8), (64, 16, 20, 1)):
        for _, tiling in decode_quantised.TILINGS[bits]:
            decode_quantised._kernel(head_dim, num_heads, num_kv_heads, 64, half, bits, is_online, tiling, is_half,
                                     HOPPER)
    assert len(compiled) >= 4 and set(compiled) == {"decode_quantised"}


@pytest.mark.parametrize(("is_half", "head_dim", "num_heads", "num_kv_heads"), [
    (False, 128, 32, 8), (True, 128, 32, 32), (True, 64, 14, 2)])
def test_decode_cluster_compiles_in_every_tiling(is_half: bool, head_dim: int, num_heads: int, num_kv_heads: int,
                                                 compiled: list[str]) -> None:
    for _, tiling in decode_cluster.TILINGS:
        decode_cluster._kernel(head_dim, num_heads, num_kv_heads, 64, is_half, tiling, HOPPER)
    assert compiled == ["decode_cluster"] * len(decode_cluster.TILINGS)
