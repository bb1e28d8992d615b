"""AWQ of one decoder layer: scales moved from its weights into what comes before them, then four bits a weight.

Four linear layers, four places that can take a scale over: the norm in front of w_qkv, the value heads in front of wo,
the norm in front of w13, and up in front of w2. With grouped queries a value head feeds the inputs of wo of several
query heads, which then share their scales. Scaling alone does not change what the layer computes.
Used by quantise_checkpoint.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.config import ModelConfig
from backend.models.decoder import DecoderLayer
from converter.awq_search import fixed_scales, search_ranges, search_scales
from converter.group_quantiser import GroupQuantised, quantise
from converter.input_statistics import InputStatistics, Observed

LINEARS = ("attention.w_qkv", "attention.wo", "feed_forward.w13", "feed_forward.w2")


@dataclass(frozen=True, slots=True)
class Recipe:
    """is_searched: scales and ranges are searched for; else a formula gives the scales, and ranges are whole."""

    group_size: int
    is_searched: bool


@dataclass(frozen=True, slots=True)
class QuantisedLayer:
    """By canonical name within the layer: the weights of LINEARS, and all else (norms, biases) as dense tensors."""

    weights: Mapping[str, GroupQuantised]
    others: Mapping[str, Tensor]


def observe(layer: DecoderLayer, group_size: int) -> dict[str, InputStatistics]:
    """Statistics of the inputs of each of LINEARS, which gather whatever the layer is run on from now on."""
    statistics = {}
    for name in LINEARS:
        linear = layer.get_submodule(name)
        statistics[name] = InputStatistics(linear.weight.shape[1], group_size, linear.weight.device)
        linear.weight_format = Observed(linear.weight_format, statistics[name])
    return statistics


@torch.inference_mode()
def quantise_layer(layer: DecoderLayer, model: ModelConfig, statistics: Mapping[str, InputStatistics],
                   recipe: Recipe, stored: torch.dtype) -> QuantisedLayer:
    """The layer's weights on its own device, quantised; the layer itself stays as it is.

    stored  the dtype in which norms and biases will be written"""
    dense = {name: parameter.float() for name, parameter in layer.named_parameters()}
    heads = ValueHeads(model)
    scales = {}
    for name in LINEARS:
        pool, spread = (heads.pool, heads.spread) if name == "attention.wo" else (_same, _same)
        given = dense[f"{name}.weight"], statistics[name], recipe.group_size
        scales[name] = search_scales(*given, pool, spread) if recipe.is_searched else fixed_scales(*given, pool)
    factors = dict(scales)  # of the input channels of each
    for norm, name in (("attention_norm.weight", "attention.w_qkv"), ("ffn_norm.weight", "feed_forward.w13")):
        before, after = dense[norm], (dense[norm] / scales[name]).to(stored).float()
        # Channels whose norm float16 cannot hold, scaled, keep it. What the others have given away once they are
        # rounded, the weights take over, so that their rounding costs nothing.
        is_scaled = after.isfinite() & (after != 0)
        dense[norm] = torch.where(is_scaled, after, before)
        factors[name] = torch.where(is_scaled, before / after, 1.0)
    factors["attention.wo"] = heads.spread(scales["attention.wo"])
    for name in ("attention.w_qkv.weight", "attention.w_qkv.bias"):
        if name in dense:
            dense[name] = _divide_last_rows(dense[name], scales["attention.wo"])
    dense["feed_forward.w13.weight"] = _divide_last_rows(dense["feed_forward.w13.weight"], scales["feed_forward.w2"])
    weights = {}
    for name in LINEARS:
        weight = dense.pop(f"{name}.weight") * factors[name]
        gram = statistics[name].gram_of_inputs_over(factors[name])
        ranges = search_ranges(weight, gram) if recipe.is_searched else (None, None)
        weights[name] = quantise(weight, recipe.group_size, *ranges)
    return QuantisedLayer(weights, {name: tensor.to(stored) for name, tensor in dense.items()})


@dataclass(frozen=True, slots=True)
class ValueHeads:
    """Between the channels of v, [K * D], and those of wo's inputs, [H * D], which they feed."""

    model: ModelConfig

    def pool(self, values: Tensor) -> Tensor:
        """[H * D] → [K * D], the mean over the query heads that share a value head."""
        model = self.model
        return values.view(model.num_kv_heads, -1, model.head_dim).mean(1).flatten()

    def spread(self, values: Tensor) -> Tensor:
        """[K * D] → [H * D]."""
        model = self.model
        heads = values.view(model.num_kv_heads, 1, model.head_dim)
        return heads.expand(-1, model.num_heads // model.num_kv_heads, -1).flatten()


def _same(values: Tensor) -> Tensor:
    return values


def _divide_last_rows(tensor: Tensor, scales: Tensor) -> Tensor:
    """v of q | k | v, or up of gate | up: as many rows as there are scales."""
    rest, last = tensor.split([len(tensor) - len(scales), len(scales)])
    return torch.cat([rest, last / scales.view(-1, *(1,) * (tensor.dim() - 1))])
