from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backend.distributed import TensorParallel
from backend.errors import CheckpointError
from backend.models.decoder import Decoder
from backend.worker.weight_loader import load_weights
from tests.backend.models.hugging_face import WeightsSource
from tests.backend.tiny_model import tensor_shapes, tiny_source

CPU = torch.device("cpu")
Change = Callable[[dict[str, Tensor]], None]


def source_with(change: Change) -> WeightsSource:
    tiny = tiny_source(attention_bias=True)
    weights = dict(tiny.tensors())
    change(weights)
    return WeightsSource(tiny.model, tiny.engine, weights)


def load(source: WeightsSource, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(source.model, source.engine, TensorParallel())
    load_weights(model, source, dtype, CPU)
    return model


@pytest.mark.parametrize(("change", "cause"), [
    (lambda weights: weights.pop("norm.weight"), "1 of 17 tensors are missing, the first is norm.weight"),
    (lambda weights: weights.update(stray=torch.ones(1)), "tensor stray has no place in tiny"),
    (lambda weights: weights.update({"layers.1.feed_forward.w2.weight": torch.ones(32, 47)}),
     r"tensor layers.1.feed_forward.w2.weight has shape \[32, 47\], its configuration needs \[32, 48\]"),
], ids=["missing", "unknown", "wrong shape"])
def test_weights_that_do_not_fit_are_refused_by_name(change: Change, cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        load(source_with(change))


def test_nothing_is_read_before_all_tensors_are_known_to_fit() -> None:
    class Unreadable:
        shape = (96, 32)

        def __getitem__(self, index: object) -> Tensor:
            raise AssertionError("read")

    source = source_with(lambda weights: weights.update({"tok_embeddings.weight": Unreadable()}))
    del source.weights["norm.weight"]
    with pytest.raises(CheckpointError, match="1 of 17 tensors are missing"):
        load(source)


def test_a_vocabulary_that_ranks_do_not_divide_is_padded_with_zeros() -> None:
    source = tiny_source(vocab_size=97)
    model = Decoder(source.model, replace(source.engine, tp=2), TensorParallel(1, 2))
    load_weights(model, source, torch.float32, CPU)
    stored = dict(source.tensors())["output.weight"]
    assert torch.equal(model.output.weight[:48], stored[49:])
    assert not model.output.weight[48:].any()


def test_a_tensor_that_comes_twice_is_refused() -> None:
    class Doubled(WeightsSource):
        def tensors(self) -> Iterator[tuple[str, Tensor]]:
            yield from [*self.weights.items(), ("norm.weight", self.weights["norm.weight"])]

    plain = source_with(lambda weights: None)
    with pytest.raises(CheckpointError, match=r"tensor norm\.weight is there twice"):
        load(Doubled(plain.model, plain.engine, plain.weights))


def test_weights_arrive_in_the_compute_dtype() -> None:
    source = source_with(lambda weights: None)
    model = load(source, torch.bfloat16)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == source.weights.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, source.weights[name].to(torch.bfloat16)), name
    assert model.rotary.dtype == torch.float32


def test_every_rank_holds_its_part_of_every_tensor() -> None:
    source = tiny_source(output_bias=True, qk_norm=True)
    stored = sum(torch.Size(shape).numel() for shape in tensor_shapes(source.model).values())
    whole = {name for name in tensor_shapes(source.model) if "norm" in name or name.endswith("wo.bias")}
    replicated = sum(torch.Size(tensor_shapes(source.model)[name]).numel() for name in whole)
    for rank in range(2):
        model = Decoder(source.model, replace(source.engine, tp=2), TensorParallel(rank, 2))
        load_weights(model, source, torch.float32, CPU)
        assert sum(parameter.numel() for parameter in model.parameters()) == (stored - replicated) // 2 + replicated
