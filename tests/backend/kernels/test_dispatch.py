"""Dispatch: CPU tensors run the reference, CUDA tensors Triton, without waiting for the device."""

from __future__ import annotations

import inspect

import pytest
import torch

from backend.kernels import dispatch, reference
from tests.backend.kernels.paged_batch import make_batch

KERNELS = ["rms_norm", "add_rms_norm", "silu_and_mul", "rotary_and_store", "paged_decode", "paged_prefill"]


@pytest.mark.parametrize("name", KERNELS)
def test_every_implementation_has_the_reference_signature(name):
    expected = inspect.signature(getattr(reference, name))
    assert inspect.signature(getattr(dispatch, name)) == expected
    assert inspect.signature(getattr(dispatch._triton_kernels(), name)) == expected


@pytest.mark.parametrize("name", KERNELS)
def test_cpu_tensors_run_the_reference(name, monkeypatch):
    parameters = inspect.signature(getattr(reference, name)).parameters
    arguments = [torch.zeros(1) for _ in parameters]
    calls = []
    monkeypatch.setattr(reference, name, lambda *given: calls.append(given))
    getattr(dispatch, name)(*arguments)
    assert [[id(argument) for argument in call] for call in calls] == [[id(argument) for argument in arguments]]


@pytest.mark.gpu
def test_a_layer_of_kernels_does_not_wait_for_the_device():
    batch = make_batch([30, 40], [1, 4], device="cuda", dtype=torch.float16)
    weight, k = torch.ones(64, device="cuda", dtype=torch.float16), batch.q[:, :2]
    positions = torch.arange(5, device="cuda")
    cos_sin = torch.ones(5, 2, 32, device="cuda")
    caches = torch.zeros_like(batch.k_cache), torch.zeros_like(batch.v_cache)

    def layer():
        flat = batch.q.flatten(1)
        dispatch.rms_norm(batch.q, weight, 1e-6)
        dispatch.add_rms_norm(flat, flat, weight.repeat(4), 1e-6)
        dispatch.silu_and_mul(flat)
        dispatch.rotary_and_store(batch.q, k, k, positions, cos_sin, *caches, positions)
        dispatch.paged_decode(batch.q[:2], k[:2], k[:2], positions[:2], cos_sin, *caches, positions[:2],
                              batch.block_tables, batch.context_lens, 1.0)
        dispatch.paged_prefill(batch.q, batch.k_cache, batch.v_cache, batch.block_tables, batch.context_lens,
                               batch.query_start, 1.0, max_query_len=4, max_context_len=40)

    layer()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer()
    finally:
        torch.cuda.set_sync_debug_mode("default")
