"""Shapes: random weights are those that a model of the shape could have, dense or quantised."""

from __future__ import annotations

import pytest
import torch

from backend.config import EngineConfig, QuantConfig
from benchmarks.shapes import SHAPES, STD, RandomModel, with_weights
from tests.awq_checkpoints import dequantise
from tests.benchmarks.tiny import TINY_AWQ


def test_a_shape_in_awq_is_the_same_model_in_four_bits():
    dense, awq = SHAPES["m7"], with_weights(SHAPES["m7"], "awq")
    assert with_weights(dense, "bf16") is dense
    assert (awq.model_name, awq.dtype, awq.quant) == ("m7_awq", "float16", QuantConfig(128))
    assert (awq.hidden_size, awq.num_layers, awq.vocab_size) == (dense.hidden_size, dense.num_layers, dense.vocab_size)


def test_random_words_stand_for_weights_of_the_usual_size():
    tensors = dict(RandomModel(TINY_AWQ, EngineConfig(session_len=1)).tensors())
    weight = dequantise(*(tensors[f"layers.1.feed_forward.w13.{kind}"][:].cpu()
                          for kind in ("qweight", "qzeros", "scales")))
    assert weight.shape == (2 * TINY_AWQ.intermediate_size, TINY_AWQ.hidden_size)
    assert weight.square().mean().sqrt() == pytest.approx(STD, rel=0.02)
    assert weight.unique().numel() == 15
    assert abs(weight.mean().item()) < 0.02 * STD
    assert torch.equal(tensors["norm.weight"][:], torch.ones(TINY_AWQ.hidden_size, dtype=torch.float16))
