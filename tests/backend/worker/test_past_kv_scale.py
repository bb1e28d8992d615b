"""Calibrated scales: what a file holds is what a rank's cache is read with; a wrong file is a line with its cure."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from backend.distributed import TensorParallel
from backend.errors import CheckpointError
from backend.kv_format import KvFormat
from backend.worker.past_kv_scale import identity, read_past_kv_scale
from backend.workspace import PAST_KV_SCALE
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import TinySource, tiny_source


def layers(value: float = 0.05) -> dict[str, torch.Tensor]:
    """Scales that differ in every place, and zeros."""
    count = torch.arange(8.0).view(2, 2, 2)
    return {f"layers.{index}.past_kv_scale": value + 0.001 * (count + 8 * index) for index in range(2)}


@pytest.fixture
def source(tmp_path) -> TinySource:
    (tmp_path / PAST_KV_SCALE).parent.mkdir(parents=True)
    return dataclasses.replace(tiny_source(quant_policy=4), path=tmp_path)


def write(source: TinySource, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    save_file(tensors, source.path / PAST_KV_SCALE, {**identity(source), **metadata})


def read(source: TinySource, tp: TensorParallel | None = None) -> torch.Tensor | None:
    return read_past_kv_scale(source, source.engine, tp or TensorParallel())


def test_scales_and_zeros_are_each_head_s_for_levels_from_0_on(source):
    tensors = layers()
    write(source, tensors)
    scales = read(source)
    for layer in range(2):
        for head in range(2):
            for which in range(2):
                scale, zero = tensors[f"layers.{layer}.past_kv_scale"][which, head]
                torch.testing.assert_close(scales[layer, head, which], torch.stack((scale, zero - 128 * scale)))


def test_each_rank_has_the_scales_of_its_own_heads(source):
    write(source, layers())
    halves = [read(source, TensorParallel(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat(halves, 1), read(source)) and halves[0].shape == (2, 1, 2, 2)


@pytest.mark.parametrize("quant_policy", [0, 8])
def test_other_formats_do_not_look_at_the_file(source, quant_policy):
    write(source, {"no": torch.ones(1)})
    other = dataclasses.replace(source.engine, quant_policy=quant_policy)
    assert read_past_kv_scale(source, other, TensorParallel()) is None


def test_without_a_file_4_is_int4(source):
    assert read(source) is None
    assert StepDriver(source).worker.runner.inputs.kv_cache[0].format is KvFormat.INT4


def test_with_a_file_4_is_calibrated_int8_and_the_model_says_nearly_the_same(source):
    range_ = torch.tensor([[8 / 127, 0.0]]).expand(2, 2, 2).contiguous()
    write(source, {f"layers.{index}.past_kv_scale": range_.clone() for index in range(2)})
    calibrated = StepDriver(source)
    assert calibrated.worker.runner.inputs.kv_cache[0].format is KvFormat.CALIBRATED_INT8
    plain = StepDriver(tiny_source())
    prompt = [5, 9, 17, 33, 4]
    for driver in (calibrated, plain):
        driver.run([(0, 0, 4)], [driver.setup(0, prompt)], silent=[0])
    ours, theirs = (driver.logits([(0, 4, 1)]) for driver in (calibrated, plain))
    assert 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


@pytest.mark.parametrize(("tensors", "metadata", "message"), [
    (layers(), {"num_layers": "32", "hidden_size": "4096"},
     r"another model \(num_layers=32, hidden_size=4096\) than this one \(num_layers=2, hidden_size=32\)"),
    (layers(), {"model_name": "other"}, r"model_name=other\) than this one \(model_name=tiny"),
    (layers(), {"format": "pt"}, r"format=pt"),
    (layers(), {"weights": "0123456789abcdef"}, r"weights=0123456789abcdef\) than this one \(weights=[0-9a-f]{16}\)"),
    ({"layers.0.past_kv_scale": torch.ones(2, 2, 2)}, {}, "has no layers.1.past_kv_scale"),
    (layers() | {"layers.1.past_kv_scale": torch.ones(2, 3, 2)}, {}, r"layers.1.past_kv_scale is \[2, 3, 2\]"),
    (layers() | {"layers.1.past_kv_scale": torch.ones(2, 2, 2).half()}, {}, "torch.float16"),
    (layers() | {"layers.1.past_kv_scale": torch.full((2, 2, 2), torch.nan)}, {}, "not finite"),
    (layers(-1.0), {}, "negative"),
])
def test_a_file_of_another_model_or_with_wrong_tensors_is_one_line_with_the_cure(source, tensors, metadata, message):
    write(source, tensors, **metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(source)
    assert "kv_qparams" in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_is_named(source):
    (source.path / PAST_KV_SCALE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match=r"past_kv_scale.safetensors .* converter.kv_qparams"):
        read(source)
