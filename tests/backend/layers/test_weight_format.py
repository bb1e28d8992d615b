"""Weight formats: what is loaded, how ranks divide it, and what is left once it is packed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import CheckpointError, ConfigError
from backend.layers.linear import ColumnLinear, RowLinear
from backend.layers.parameter import ShardedModule
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import DENSE, Awq, weight_format
from backend.memory_plan import weights_bytes
from backend.model_source import ModelSource
from backend.models.decoder import Decoder
from backend.worker.weight_loader import load_weights
from benchmarks.shapes import RandomModel
from tests.awq_checkpoints import dequantise, quantise
from tests.backend.models.hugging_face import WeightsSource
from tests.benchmarks.tiny import TINY, TINY_AWQ

CPU = torch.device("cpu")
GROUP_SIZE = 32


def fill(layer: ShardedModule, stored: dict[str, Tensor]) -> None:
    """Loads a layer's parameters from whole tensors and packs them."""
    for name, tensor in stored.items():
        local = torch.empty(layer.shards[name].local_shape, dtype=layer.own_dtypes[name])
        for index, place in layer.shards[name].places(local):
            place.copy_(tensor[index])
        layer.set_parameter(name, local)
    layer.prepare()


def loaded(source: ModelSource, tp: TensorParallel | None = None) -> Decoder:
    model = Decoder(source.model, source.engine, tp or TensorParallel())
    load_weights(model, source, torch.float32, CPU)
    return model


def num_bytes(model: Decoder) -> int:
    packed = sum(module.packed.packed.nbytes for module in model.modules() if hasattr(module, "packed"))
    return packed + sum(parameter.nbytes for parameter in model.parameters())


def test_the_model_says_which_format_its_layers_have():
    assert weight_format(TINY) is DENSE
    assert weight_format(TINY_AWQ) == Awq(128)


@pytest.mark.parametrize("parts", [(64, 64), (128, 32, 32)], ids=["gate | up", "q | k | v"])
def test_column_and_row_layers_over_two_ranks_add_the_whole_product_to_the_residual(parts):
    torch.manual_seed(0)
    out = sum(parts)
    first, second = quantise(torch.randn(out, 96), GROUP_SIZE), quantise(torch.randn(96, out), GROUP_SIZE)
    inputs, residual = torch.randn(3, 96), torch.randn(3, 96)
    norm = RMSNorm(96, 1e-5)
    norm.set_parameter("weight", torch.rand(96))
    total, order = residual.clone(), []
    for rank in range(2):
        tp = TensorParallel(rank, 2)
        column = ColumnLinear(96, parts, False, tp, Awq(GROUP_SIZE))
        row = RowLinear(out, 96, False, tp, Awq(GROUP_SIZE))
        fill(column, first)
        fill(row, second)
        row.tp = TensorParallel()  # the sum over the ranks is this loop's
        total = row(column(inputs, norm), total)
        order += kept(parts, rank)
    expected = norm(inputs) @ dequantise(**first).T[:, order] @ dequantise(**second).T
    torch.testing.assert_close(total, residual + expected, rtol=1e-4, atol=1e-3)


def kept(parts: tuple[int, ...], rank: int) -> list[int]:
    """Outputs that a rank of two holds, in its order: half of each part."""
    starts = [sum(parts[:number]) for number in range(len(parts))]
    return [start + rank * part // 2 + output for start, part in zip(starts, parts, strict=True)
            for output in range(part // 2)]


def test_a_row_layer_needs_whole_groups_on_each_rank():
    with pytest.raises(ConfigError, match=r"tp=2 does not divide .*=3; use tp in \[1, 3\]"):
        RowLinear(96, 64, False, TensorParallel(0, 2), Awq(GROUP_SIZE))


@pytest.mark.parametrize("tp", [1, 2])
def test_what_was_loaded_is_freed_once_it_is_packed_and_the_rest_is_what_was_planned(tp):
    config = dataclasses.replace(TINY_AWQ, intermediate_size=512)
    for rank in range(tp):
        model = loaded(RandomModel(config, EngineConfig(session_len=64, tp=tp)), TensorParallel(rank, tp))
        assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight"}
        assert num_bytes(model) == weights_bytes(config, "float32", tp)


def test_words_stored_in_another_dtype_are_refused():
    random = RandomModel(TINY_AWQ, EngineConfig(session_len=64))
    weights = {name: tensor[:].cpu() for name, tensor in random.tensors()}
    name = "layers.1.attention.wo.qzeros"

    class Stored:
        shape, dtype = tuple(weights[name].shape), torch.int64

        def __getitem__(self, index: object) -> Tensor:
            return weights[name][index].long()

        def read_into(self, index: object, out: Tensor) -> None:
            raise AssertionError("read")

    source = WeightsSource(random.model, random.engine, {**weights, name: Stored()})
    with pytest.raises(CheckpointError, match=f"{name} is stored as torch.int64, its configuration needs torch.int32"):
        loaded(source)
