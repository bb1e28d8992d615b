"""Dispatch: which implementation runs, decided by where the tensors are. CUDA runs Triton's, everything else torch's.

The signatures are those of reference.py and sampling_reference.py, and are documented there. Triton is imported when
the first CUDA tensor comes, so that a machine without a GPU never pays for it. Used by backend/layers and
worker/sampler.py, which import the kernels from here only."""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace

from torch import Tensor

from backend.forward_batch import LayerKv
from backend.kernels import reference, sampling_reference, w4_weight
from backend.kernels.w4_weight import W4Weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    return _implementation(x).rms_norm(x, weight, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
           is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear."""
    return _implementation(x).linear(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)


def pack_w4(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> W4Weight:
    """See w4_weight.pack_w4: the same on every device."""
    return w4_weight.pack_w4(qweight, qzeros, scales)


def linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, norm: tuple[Tensor, float] | None = None,
              is_gated: bool = False, residual: Tensor | None = None) -> Tensor:
    """See reference.linear_w4."""
    return _implementation(x).linear_w4(x, weight, bias, norm=norm, is_gated=is_gated, residual=residual)


def logits(x: Tensor, weight: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    """See reference.logits."""
    return _implementation(x).logits(x, weight, norm)


def rotary_and_store(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                     slot_mapping: Tensor) -> None:
    """See reference.rotary_and_store."""
    _implementation(q).rotary_and_store(q, k, v, positions, cos_sin, cache, slot_mapping)


def paged_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float, *,
                 after_dense: bool = False) -> Tensor:
    """See reference.paged_decode."""
    return _implementation(q).paged_decode(q, k, v, positions, cos_sin, cache, slot_mapping, block_tables,
                                           context_lens, scale, after_dense=after_dense)


def paged_prefill(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor, query_start: Tensor,
                  scale: float, max_query_len: int, max_context_len: int, sum_context_len: int) -> Tensor:
    """See reference.paged_prefill."""
    return _implementation(q).paged_prefill(q, cache, block_tables, context_lens, query_start, scale, max_query_len,
                                            max_context_len, sum_context_len)


def penalise(logits: Tensor, token_table: Tensor, counts: Tensor, index: Tensor, rows: Tensor, num_prompt: Tensor,
             length: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor) -> None:
    """See sampling_reference.penalise."""
    _sampling(logits).penalise(logits, token_table, counts, index, rows, num_prompt, length, repetition, presence,
                               frequency)


def mask_tokens(logits: Tensor, index: Tensor, bits: Tensor) -> None:
    """See sampling_reference.mask_tokens."""
    _sampling(logits).mask_tokens(logits, index, bits)


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor,
         token_table: Tensor, slots: Tensor) -> Tensor:
    """See sampling_reference.draw."""
    return _sampling(logits).draw(logits, temperature, top_k, top_p, min_p, keys, token_table, slots)


def _sampling(tensor: Tensor) -> ModuleType | SimpleNamespace:
    return _triton_kernels() if tensor.is_cuda else sampling_reference


def _implementation(tensor: Tensor) -> ModuleType | SimpleNamespace:
    return _triton_kernels() if tensor.is_cuda else reference


@functools.cache
def _triton_kernels() -> SimpleNamespace:
    from backend.kernels import (
        decode_attention,
        kv_store,
        linear,
        penalties,
        prefill_attention,
        rms_norm,
        sampling,
        token_mask,
        w4_linear,
    )

    return SimpleNamespace(
        rms_norm=rms_norm.rms_norm, linear=linear.linear, linear_w4=w4_linear.linear_w4, logits=linear.logits,
        rotary_and_store=kv_store.rotary_and_store, penalise=penalties.penalise, draw=sampling.draw,
        mask_tokens=token_mask.mask_tokens,
        paged_decode=decode_attention.paged_decode, paged_prefill=prefill_attention.paged_prefill)
