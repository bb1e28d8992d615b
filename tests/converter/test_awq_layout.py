"""The published layout, and which rows of the source's tensors a canonical tensor's rows are."""

from __future__ import annotations

import pytest
import torch

from converter.awq_layout import SourceNames, pack, published
from converter.canonical import canonicalise, family_of
from converter.checkpoint import open_hf
from converter.group_quantiser import quantise
from tests.awq_checkpoints import dequantise, words
from tests.checkpoints import FAMILIES, make_checkpoint


def test_words_are_packed_in_the_published_order():
    values = torch.randint(0, 16, (6, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(values.to(torch.uint8)), words(values))
    word = pack(torch.tensor([[0, 1, 2, 3, 4, 5, 6, 15]])).item()
    assert word & 0xFFFFFFFF == 0xF5316420


def test_published_words_stand_for_the_quantised_weight():
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    quantised = quantise(weight, 32)
    tensors = published(quantised)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "qweight": (torch.int32, (128, 6)), "qzeros": (torch.int32, (4, 6)), "scales": (torch.float16, (4, 48))}
    assert torch.equal(dequantise(**tensors), quantised.dequantised())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_every_layer_is_found_in_the_source(family, tmp_path):
    make_checkpoint(family, tmp_path)
    checkpoint = open_hf(tmp_path)
    canonical = canonicalise(checkpoint, "llama")
    names = SourceNames(family_of(checkpoint), canonical.model)
    found = set()
    for name, tensor in canonical.tensors.items():
        if name.startswith("layers."):
            for place in names.places(name):
                assert torch.equal(checkpoint.tensors[place.name][:], tensor[:][place.rows]), (name, place.name)
                found.add(place.name)
    assert found == names.in_layers() == {name for name in checkpoint.tensors if ".layers." in name}
