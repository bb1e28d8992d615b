"""CUDA source: compiled once, kept, and an error that shows the compiler's words."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from backend.kernels import cuda_source, linear, reference, skinny_matmul
from tests.backend.kernels.comparison import assert_near

SOURCE = """extern "C" __global__ void fill(float* output, float value) { output[threadIdx.x] = value * FACTOR; }"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source file, and a cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "fill.cu"
    file.write_text(SOURCE)
    return file


def test_there_are_no_cuda_kernels_on_a_cpu():
    assert not cuda_source.is_available(torch.device("cpu"))


@pytest.mark.hopper
def test_a_kernel_is_compiled_launched_and_kept(source, monkeypatch):
    device = torch.device("cuda", 0)
    output = torch.zeros(32, device=device)
    for factor in (3, 5):
        kernel = cuda_source.load(source, "fill", {"FACTOR": factor}, device, threads=32)
        kernel.launch(1, [(output.data_ptr(), ctypes.c_void_p), (2.0, ctypes.c_float)])
        assert output.tolist() == [2.0 * factor] * 32
    assert len(list((source.parent / "cache").rglob("*.cubin"))) == 2
    monkeypatch.setattr(cuda_source, "compile_source", None)  # a second start needs no compiler
    cuda_source._machine_code.cache_clear()
    cuda_source.load(source, "fill", {"FACTOR": 3}, device, threads=32)


def test_where_nothing_can_be_kept_each_kernel_is_compiled_once_with_one_warning(source, monkeypatch, caplog):
    bindings = ModuleType("cuda.bindings")
    bindings.nvrtc = SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(cuda_source, "_architecture", lambda device: "sm_90a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file
    cuda_source._warn_not_kept.cache_clear()
    compiled = []
    monkeypatch.setattr(cuda_source, "compile_source", lambda *arguments: compiled.append(arguments) or b"code")
    for factors in ((3,), (5, 3, 7)):
        variants = [{"FACTOR": factor} for factor in factors]
        cuda_source.compile_together(source, variants, torch.device("cuda", 0))
    assert len(compiled) == 3
    assert caplog.text.count("compiled kernels are not kept") == 1


@pytest.mark.hopper
def test_a_source_that_does_not_compile_shows_the_compilers_words(source):
    source.write_text(SOURCE.replace("float*", "flaot*"))
    with pytest.raises(RuntimeError, match=r"fill.cu does not compile: (?s:.*)flaot"):
        cuda_source.load(source, "fill", {"FACTOR": 1}, torch.device("cuda", 0), threads=32)


@pytest.mark.hopper
def test_without_the_compilers_package_other_kernels_take_over_with_one_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for choice in (cuda_source.is_available, skinny_matmul.runs_on):
        choice.cache_clear()
    try:
        for num_tokens in (1, 8):
            x, weight = (torch.randn(shape, device="cuda").bfloat16() for shape in ((num_tokens, 512), (64, 512)))
            assert_near(linear.linear(x, weight), reference.linear(x.double(), weight.double()))
    finally:
        for choice in (cuda_source.is_available, skinny_matmul.runs_on):
            choice.cache_clear()
    assert caplog.text.count("kernels in CUDA C++ are off") == 1
