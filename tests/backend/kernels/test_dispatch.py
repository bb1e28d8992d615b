"""Dispatch: CPU tensors run the reference, CUDA tensors Triton, without waiting for the device."""

from __future__ import annotations

import inspect

import pytest
import torch

from backend.kernels import dispatch, reference, sampling_reference
from tests.backend.kernels.paged_batch import as_model, make_batch

REFERENCES = {**dict.fromkeys(["rms_norm", "linear", "logits", "rotary_and_store", "paged_decode", "paged_prefill"],
                             reference), "penalise": sampling_reference, "draw": sampling_reference}


@pytest.mark.parametrize("name", REFERENCES)
def test_every_implementation_has_the_reference_signature(name):
    expected = inspect.signature(getattr(REFERENCES[name], name))
    assert inspect.signature(getattr(dispatch, name)) == expected
    assert inspect.signature(getattr(dispatch._triton_kernels(), name)) == expected


@pytest.mark.parametrize("name", REFERENCES)
def test_cpu_tensors_run_the_reference(name, monkeypatch):
    signature = inspect.signature(getattr(REFERENCES[name], name))
    given = {parameter: torch.zeros(1) for parameter in signature.parameters}
    calls = []
    monkeypatch.setattr(REFERENCES[name], name, lambda *args, **kwargs: calls.append(signature.bind(*args, **kwargs)))
    getattr(dispatch, name)(**given)
    assert len(calls) == 1
    assert {key: id(value) for key, value in calls[0].arguments.items()} == {key: id(v) for key, v in given.items()}


@pytest.mark.gpu
def test_a_layer_of_kernels_does_not_wait_for_the_device():
    batch = make_batch([30, 40], [1, 4], device="cuda", dtype=torch.float16)
    square = torch.zeros(256, 256, device="cuda", dtype=torch.float16)
    weight, k = torch.ones(64, device="cuda", dtype=torch.float16), batch.q[:, :2]
    positions = torch.arange(5, device="cuda")
    cos_sin = torch.ones(5, 2, 32, device="cuda")
    cache = as_model(torch.zeros_like(batch.cache.k), torch.zeros_like(batch.cache.v))
    prefill_arguments = batch.prefill_arguments  # reads lengths on the host

    def layer():
        flat = batch.q.flatten(1)
        dispatch.rms_norm(batch.q, weight, 1e-6)
        dispatch.linear(flat, square, norm=(weight.repeat(4), 1e-6), is_gated=True)
        dispatch.linear(flat[:1], square, residual=flat[:1])
        dispatch.logits(flat, square, (weight.repeat(4), 1e-6))
        dispatch.rotary_and_store(batch.q, k, k, positions, cos_sin, cache, positions)
        dispatch.paged_decode(batch.q[:2], k[:2], k[:2], positions[:2], cos_sin, cache, positions[:2],
                              batch.block_tables, batch.context_lens, 1.0)
        dispatch.paged_prefill(*prefill_arguments)

    layer()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer()
    finally:
        torch.cuda.set_sync_debug_mode("default")
