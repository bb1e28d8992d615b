"""Shapes: the checks that a kernel and its reference share, so that both refuse the same tensors with the same words.

Host integers only: nothing here waits for a device. Used by every other file of backend/kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backend.errors import ShapeError
from backend.forward_batch import LayerKv

if TYPE_CHECKING:
    from backend.kernels.w4_weight import W4Weight

MAX_HEAD_DIM = 256
W4_GROUP_SIZES = (32, 64, 128)


def check_norm(x: Tensor, weight: Tensor) -> None:
    """x [T, X] or [T, H, X], and weight [X]. Raises ShapeError."""
    if weight.shape != x.shape[-1:] or x.dim() not in (2, 3):
        raise ShapeError(f"rms_norm: x is {list(x.shape)} and weight {list(weight.shape)}; "
                         "x must be [T, X] or [T, H, X], and weight [X]")
    _check_rows(x=x)


def check_gate_up(gate_up: Tensor) -> None:
    """gate_up [T, 2I]. Raises ShapeError where the halves cannot be equal."""
    if gate_up.shape[-1] % 2:
        raise ShapeError(f"silu_and_mul: the last axis is {gate_up.shape[-1]}; it must be even, gate | up")
    _check_rows(gate_up=gate_up)


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, float] | None, is_gated: bool,
                 residual: Tensor | None) -> None:
    """See reference.linear. Raises ShapeError."""
    if x.dim() != 2 or weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(f"linear: x is {list(x.shape)} and weight {list(weight.shape)}; "
                         "x must be [T, X], and weight [Y, X]")
    if weight.dtype != x.dtype:
        raise ShapeError(f"linear: weight is {weight.dtype}, but x is {x.dtype}; load both in one dtype")
    _check_fused(x, weight.shape[0], bias, norm, is_gated, residual)


def check_linear_w4(x: Tensor, weight: W4Weight, bias: Tensor | None, norm: tuple[Tensor, float] | None,
                    is_gated: bool, residual: Tensor | None) -> None:
    """See reference.linear_w4. Raises ShapeError."""
    if x.dim() != 2 or x.shape[1] != weight.in_features:
        raise ShapeError(f"linear: x is {list(x.shape)}; it must be [T, {weight.in_features}], as the weight has "
                         "inputs")
    _check_fused(x, weight.out_features, bias, norm, is_gated, residual)


def check_pack_w4(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> None:
    """See w4_weight.pack_w4. Raises ShapeError."""
    tensors = {"qweight": (qweight, torch.int32), "qzeros": (qzeros, torch.int32), "scales": (scales, torch.float16)}
    for name, (tensor, dtype) in tensors.items():
        if tensor.dim() != 2 or tensor.dtype != dtype:
            raise ShapeError(f"W4 weight: {name} is {tensor.dtype} {list(tensor.shape)}; it must be {dtype} with two "
                             "axes")
    (in_features, num_words), (num_groups, out_features) = qweight.shape, scales.shape
    if qzeros.shape != (num_groups, num_words) or num_words * 8 != out_features:
        raise ShapeError(f"W4 weight: qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales "
                         f"{list(scales.shape)} do not fit; they must be [X, Y/8], [X/g, Y/8] and [X/g, Y]")
    if num_groups == 0 or in_features not in [num_groups * size for size in W4_GROUP_SIZES]:
        raise ShapeError(f"W4 weight: {in_features} inputs in {num_groups} groups; the group size must be one of "
                         f"{', '.join(map(str, W4_GROUP_SIZES))}")


def _check_fused(x: Tensor, num_outputs: int, bias: Tensor | None, norm: tuple[Tensor, float] | None, is_gated: bool,
                 residual: Tensor | None) -> None:
    if bias is not None and bias.shape != (num_outputs,):
        raise ShapeError(f"linear: bias is {list(bias.shape)}; it must be [{num_outputs}], as the weight has rows")
    if norm is not None and norm[0].shape != x.shape[1:]:
        raise ShapeError(f"linear: the norm's weight is {list(norm[0].shape)}; it must be [{x.shape[1]}], as x has "
                         "columns")
    if is_gated and num_outputs % 2:
        raise ShapeError(f"linear: gate and up together are {num_outputs} outputs; they must be equally many")
    num_results = num_outputs // 2 if is_gated else num_outputs
    if residual is not None and residual.shape != (x.shape[0], num_results):
        raise ShapeError(f"linear: residual is {list(residual.shape)}; it must be [{x.shape[0]}, {num_results}]")
    for name, tensor in {"bias": bias, "the norm's weight": norm and norm[0], "residual": residual}.items():
        if tensor is not None and tensor.dtype != x.dtype:
            raise ShapeError(f"linear: {name} is {tensor.dtype}, but x is {x.dtype}; load both in one dtype")
    _check_rows(x=x)


def check_rotary_and_store(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                           slot_mapping: Tensor) -> None:
    """q [T, H, D], k and v [T, K, D], positions and slot_mapping [T], cos_sin [P, 2, R/2] with R <= D. Raises
    ShapeError."""
    num_tokens, _, head_dim = q.shape
    if k.shape[0] != num_tokens or k.shape[2] != head_dim or positions.shape[0] != num_tokens:
        raise ShapeError(f"rotary: q {list(q.shape)}, k {list(k.shape)} and positions {list(positions.shape)} "
                         "must agree in tokens and head_dim")
    if cos_sin.dim() != 3 or cos_sin.shape[1] != 2 or 2 * cos_sin.shape[2] > head_dim:
        raise ShapeError(f"rotary: cos_sin is {list(cos_sin.shape)}; it must be [positions, 2, R/2] "
                         f"with R at most head_dim={head_dim}")
    _check_cache(cache)
    heads = cache.num_kv_heads, cache.head_dim
    if k.shape != v.shape or k.shape[1:] != heads or slot_mapping.shape[0] != k.shape[0]:
        raise ShapeError(f"KV store: k {list(k.shape)}, v {list(v.shape)}, slot_mapping {list(slot_mapping.shape)} do "
                         f"not fit a cache of {heads[0]} heads of {heads[1]}; k and v must be [T, K, D], slot_mapping "
                         "[T]")
    _check_dtype("KV store: k", k, cache)
    _check_rows(q=q, k=k, v=v, positions=positions, slot_mapping=slot_mapping)


def check_decode(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, cache: LayerKv,
                 slot_mapping: Tensor, block_tables: Tensor, context_lens: Tensor) -> None:
    """As check_rotary_and_store and check_attention, with one token per sequence. Raises ShapeError."""
    check_attention(q, cache, block_tables, context_lens)
    check_rotary_and_store(q, k, v, positions, cos_sin, cache, slot_mapping)
    if q.shape[0] != context_lens.shape[0]:
        raise ShapeError(f"decode: q is {list(q.shape)}, but there are {context_lens.shape[0]} context lengths; "
                         "each row must have one new token")


def check_attention(q: Tensor, cache: LayerKv, block_tables: Tensor, context_lens: Tensor) -> None:
    """q [., H, D], block_tables [B, M], context_lens [B], H a multiple of K. Raises ShapeError."""
    _check_cache(cache)
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.num_kv_heads
    if num_heads % num_kv_heads:
        raise ShapeError(f"attention: {num_heads} query heads are not a multiple of {num_kv_heads} KV heads")
    if head_dim != cache.head_dim or head_dim > MAX_HEAD_DIM:
        raise ShapeError(f"attention: head_dim is {head_dim} in q and {cache.head_dim} in the cache; "
                         f"both must be the same and at most {MAX_HEAD_DIM}")
    if block_tables.dim() != 2 or block_tables.shape[0] != context_lens.shape[0]:
        raise ShapeError(f"attention: block_tables {list(block_tables.shape)} and context_lens "
                         f"{list(context_lens.shape)} must have one row per sequence")
    _check_dtype("attention: q", q, cache)
    _check_rows(q=q, block_tables=block_tables, context_lens=context_lens)


def _check_rows(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ShapeError(f"{name}: values along the last axis must lie next to each other, but their stride is "
                             f"{tensor.stride(-1)}; pass a contiguous tensor, or a view that cuts other axes")


def _check_dtype(name: str, tensor: Tensor, cache: LayerKv) -> None:
    if cache.scales is None and tensor.dtype != cache.k.dtype:
        raise ShapeError(f"{name} is {tensor.dtype}, but the KV cache is {cache.k.dtype}; "
                         "allocate the cache in the model's dtype")


def _check_cache(cache: LayerKv) -> None:
    k, v, scales = cache.k, cache.v, cache.scales
    if k.dim() != 4 or k.shape != v.shape:
        raise ShapeError(f"KV cache: k is {list(k.shape)}, v is {list(v.shape)}; both must be "
                         "[blocks, KV heads, block size, head_dim]")
    if (scales is not None) != (cache.format.num_bits > 0):
        raise ShapeError(f"KV cache: {cache.format.value} {'has no' if scales is None else 'needs no'} scales")
    rows = k.shape[:3] if cache.format.is_online else k.shape[1:2]
    if scales is not None and scales.shape != (*rows, 2, 2):
        raise ShapeError(f"KV cache: the scales are {list(scales.shape)}; {cache.format.value} needs "
                         f"{[*rows, 2, 2]}, scale and zero of k and of v")
    if not all(tensor is None or tensor.is_contiguous() for tensor in (k, v, scales)):
        raise ShapeError("KV cache: k, v and their scales must each be contiguous; allocate one tensor for each")
