"""AWQ of a layer: scaling alone leaves its function as it is, and quantising costs less where scales are searched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.config import EngineConfig
from backend.models.decoder import DecoderLayer
from converter import awq_layer
from converter.awq_layer import LINEARS, QuantisedLayer, Recipe, observe, quantise_layer
from converter.group_quantiser import GroupQuantised
from converter.layerwise import LayerwiseModel
from converter.source import open_checkpoint
from tests.checkpoints import FAMILIES, make_checkpoint

SEQLEN = 48
ROUNDING = 1e-4  # float32, other order of products


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def layerwise(family: str, folder: Path, num_kv_heads: int = 2) -> tuple[LayerwiseModel, Tensor]:
    """A tiny model, and its first layer's input [4, SEQLEN, hidden_size], with channels of very different size."""
    make_checkpoint(family, folder, num_kv_heads=num_kv_heads)
    model = LayerwiseModel(open_checkpoint(folder, "llama"), EngineConfig(session_len=SEQLEN, device="cpu"))
    ids = torch.randint(5, 261, (4, SEQLEN), generator=torch.Generator().manual_seed(1))
    return model, model.embed(ids) * torch.logspace(-1, 1, model.model.hidden_size)


def output(model: LayerwiseModel, layer: DecoderLayer, hidden: Tensor) -> Tensor:
    hidden = hidden.clone()
    model.advance(layer, 0, hidden, 2, lambda count: None)
    return hidden


def put_into(layer: DecoderLayer, quantised: QuantisedLayer, weights: dict[str, Tensor]) -> DecoderLayer:
    for name, tensor in {**quantised.others, **{f"{name}.weight": weight for name, weight in weights.items()}}.items():
        path, _, own_name = name.rpartition(".")
        layer.get_submodule(path).set_parameter(own_name, tensor.float())
    return layer


@pytest.mark.parametrize("is_searched", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_scaling_alone_leaves_the_layer_s_function(family, is_searched, tmp_path, monkeypatch):
    model, hidden = layerwise(family, tmp_path)
    layer = model.layer(0)
    statistics = observe(layer, 64)
    expected = output(model, layer, hidden)
    weights: list[Tensor] = []

    def keep(weight: Tensor, group_size: int, low: Tensor | None, high: Tensor | None) -> GroupQuantised:
        weights.append(weight)
        return GroupQuantised(weight, weight, weight)

    monkeypatch.setattr(awq_layer, "quantise", keep)
    quantised = quantise_layer(layer, model.model, statistics, Recipe(64, is_searched), torch.bfloat16)
    scaled = put_into(model.layer(0), quantised, dict(zip(LINEARS, weights, strict=True)))
    assert not torch.equal(scaled.attention.w_qkv.weight, model.layer(0).attention.w_qkv.weight)
    # Biases and the norms of heads are rounded as they are written; so are the other norms, but the weights know.
    tolerance = 1e-2 if model.model.attention_bias or model.model.qk_norm else ROUNDING
    assert (output(model, scaled, hidden) - expected).abs().max() < tolerance * expected.abs().max()


def test_channels_whose_scaled_norm_has_no_float16_stay_as_they_are(tmp_path, monkeypatch):
    model, _ = layerwise("llama", tmp_path)
    layer = model.layer(0)
    layer.attention_norm.weight[0], layer.attention_norm.weight[1] = 1e-7, 0.0
    layer.attention_norm.weight[2] = 6e4
    monkeypatch.setattr(awq_layer, "fixed_scales", lambda weight, statistics, group_size, pool: torch.cat(
        [torch.tensor([64.0, 2.0, 1 / 64]), pool(statistics.mean_magnitude)[3:].fill_(1.0)]))
    quantised = quantise_layer(layer, model.model, observe(layer, 64), Recipe(64, False), torch.float16)
    norm, weight = quantised.others["attention_norm.weight"], quantised.weights["attention.w_qkv"].dequantised()
    assert norm[0] == torch.tensor(1e-7).half() and norm[1] == 0 and norm[2] == torch.tensor(6e4).half()
    unscaled = layer.attention.w_qkv.weight[:384, :3]  # of q and k
    assert (weight[:384, :3] - unscaled).abs().max() < 0.15 * unscaled.abs().max()


@pytest.mark.parametrize("family", ["llama", "internlm2", "qwen2"])
def test_search_loses_less_than_the_formula(family, tmp_path):
    model, hidden = layerwise(family, tmp_path)
    layer = model.layer(0)
    statistics = observe(layer, 64)
    expected = output(model, layer, hidden)

    def error(recipe: Recipe) -> float:
        quantised = quantise_layer(layer, model.model, statistics, recipe, torch.bfloat16)
        weights = {name: weight.dequantised() for name, weight in quantised.weights.items()}
        return float((output(model, put_into(model.layer(0), quantised, weights), hidden) - expected).square().sum())

    assert error(Recipe(64, is_searched=True)) < 0.9 * error(Recipe(64, is_searched=False))


def test_value_channels_scale_together_for_the_query_heads_that_share_them(tmp_path):
    model, _ = layerwise("llama", tmp_path)  # 4 query heads of 64, 2 value heads
    heads = awq_layer.ValueHeads(model.model)
    values = torch.arange(256.0)
    assert torch.equal(heads.pool(values)[:64], (values[:64] + values[64:128]) / 2)
    spread = heads.spread(torch.arange(128.0))
    assert torch.equal(spread[:64], spread[64:128]) and torch.equal(spread[128:192], torch.arange(64.0, 128.0))
