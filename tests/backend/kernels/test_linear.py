"""Linear layers against the reference in float64: one token through each matrix-vector kernel, more through cuBLAS."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backend.kernels import linear, matvec, matvec_cuda, reference
from tests.backend.kernels.fused_linear import EPS, FUSIONS, check_fused


@pytest.fixture(params=["triton", pytest.param("cuda", marks=pytest.mark.hopper)])
def one_token(request: pytest.FixtureRequest, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Each matrix-vector kernel, with a result in the dtype under test."""
    if request.param == "cuda" and dtype == torch.float32:
        pytest.skip("the kernel in CUDA C++ is for half precision")
    kernel = matvec_cuda.matvec if request.param == "cuda" else matvec.matvec
    return functools.partial(kernel, dtype=dtype)


def check(kernel: Callable[..., Tensor], num_tokens: int, size: int, num_outputs: int, fusion: tuple[int, ...],
          device: str, dtype: torch.dtype) -> None:
    """The kernel's result equals the reference's in float64, and is in the residual where there is one."""
    x, weight = torch.randn(num_tokens, size).to(device, dtype), torch.randn(num_outputs, size).to(device, dtype)
    check_fused(kernel, x, weight, weight.double(), fusion)


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_a_token_is_normalised_multiplied_gated_and_added(one_token, fusion, device, dtype):
    check(one_token, 1, 136, 24, fusion, device, dtype)


@pytest.mark.parametrize("size", [8, 256, 4096, 4104, 5000, 11008, 14336, 18944])
def test_inputs_of_any_size_are_multiplied(one_token, size, device, dtype):
    check(one_token, 1, size, 6, (1, 0, 1, 0), device, dtype)


@pytest.mark.parametrize("num_outputs", [1, 3, 50, 4097])
def test_any_number_of_outputs_is_computed(one_token, num_outputs, device, dtype):
    check(one_token, 1, 64, num_outputs, (0, 0, 0, 0), device, dtype)


def test_sizes_that_no_load_divides_are_for_triton(device, dtype):
    x, weight = torch.zeros(1, 100, device=device, dtype=dtype), torch.zeros(4, 100, device=device, dtype=dtype)
    assert not matvec_cuda.fits(x, weight)


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 17])
def test_tokens_are_normalised_multiplied_gated_and_added(num_tokens, fusion, device, dtype):
    check(linear.linear, num_tokens, 96, 24, fusion, device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_logits_are_not_rounded_to_the_models_precision(num_tokens):
    shapes = (num_tokens, 512), (999, 512), (512,)
    x, weight, factor = (torch.randn(shape).to("cuda", torch.bfloat16) for shape in shapes)
    logits = linear.logits(x, weight, (factor, EPS))
    exact = reference.linear(x.double(), weight.double(), norm=(factor.double(), EPS))
    error = (logits.double() - exact).abs().max() / exact.abs().max()
    # More than one token: the normalised x is rounded to bfloat16 before it is multiplied, the products are not.
    assert error < (1e-5 if num_tokens == 1 else 2**-8)


def test_no_tokens_give_no_results(device, dtype):
    x, weight = torch.zeros(0, 32, device=device, dtype=dtype), torch.zeros(8, 32, device=device, dtype=dtype)
    assert linear.linear(x, weight, norm=(torch.ones(32, device=device, dtype=dtype), EPS)).shape == (0, 8)
