from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from backend.config import RopeConfig
from backend.layers.rotary import rotary_frequencies, rotary_table

MAX_POSITIONS = 2048


def hugging_face_frequencies(rope: RopeConfig, session_len: int) -> torch.Tensor:
    parameters = {"rope_type": rope.scaling_type, "rope_theta": rope.theta, "factor": rope.factor}
    if rope.scaling_type == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor,
                       "original_max_position_embeddings": rope.original_max_position_embeddings}
    config = LlamaConfig(hidden_size=rope.dim * 4, num_attention_heads=4, head_dim=rope.dim,
                         max_position_embeddings=MAX_POSITIONS, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[rope.scaling_type](config, torch.device("cpu"), seq_len=session_len)[0]


@pytest.mark.parametrize("rope", [
    RopeConfig(64, scaling_type="linear", factor=2.5),
    RopeConfig(128, 1e6, "dynamic", factor=2.0),
    RopeConfig(128, 500000.0, "llama3", 8.0, 1.0, 4.0, 8192),
], ids=lambda rope: rope.scaling_type)
@pytest.mark.parametrize("session_len", [1000, 5000])
def test_frequencies_are_those_of_transformers(rope: RopeConfig, session_len: int) -> None:
    expected = hugging_face_frequencies(rope, session_len)
    torch.testing.assert_close(rotary_frequencies(rope, session_len, MAX_POSITIONS), expected, rtol=1e-6, atol=0.0)


def test_dynamic_scaling_is_plain_up_to_the_trained_length_and_stretches_beyond() -> None:
    plain, dynamic = RopeConfig(64), RopeConfig(64, scaling_type="dynamic", factor=2.0)
    expected = rotary_frequencies(plain, MAX_POSITIONS, MAX_POSITIONS)
    assert torch.equal(rotary_frequencies(dynamic, MAX_POSITIONS, MAX_POSITIONS), expected)
    assert (rotary_frequencies(dynamic, 4 * MAX_POSITIONS, MAX_POSITIONS)[1:] < expected[1:]).all()


def test_the_table_holds_cosines_then_sines_of_each_position() -> None:
    table = rotary_table(RopeConfig(8), num_positions=5, session_len=5, max_position_embeddings=5)
    angles = 3 * rotary_frequencies(RopeConfig(8), 5, 5)
    assert table.shape == (5, 2, 4)
    torch.testing.assert_close(table[3], torch.stack((angles.cos(), angles.sin())))
