"""Layer by layer the model computes what it computes as a whole; on a GPU, what it computes on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.accuracy_report import read_reports
from backend.config import EngineConfig
from backend.errors import ConfigError
from converter.awq_layer import Recipe
from converter.calibration_windows import Calibration
from converter.kv_calibration import measure_ranges
from converter.layerwise import LayerwiseModel
from converter.quantise_checkpoint import quantise_checkpoint
from converter.source import open_checkpoint
from tests.checkpoints import FAMILIES, make_checkpoint

DEMO = Path(__file__).parents[2] / "demo"
RELATIVE_ERROR = 1e-4  # float32 on both sides, different order of sums
IN_BFLOAT16 = 0.03


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def token_ids(seqlen: int) -> Tensor:
    return torch.randint(5, 261, (5, seqlen), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seqlen", [64, 70])  # a full block, and more than one
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_hidden_states_are_the_reference_s(family, seqlen, tmp_path):
    reference = make_checkpoint(family, tmp_path)
    layers = LayerwiseModel(open_checkpoint(tmp_path, "llama"), EngineConfig(session_len=seqlen, device="cpu"))
    hidden = layers.embed(token_ids(seqlen))
    counts: list[int] = []
    for index in range(2):
        layers.advance(layers.layer(index), index, hidden, 2, counts.append)
    assert counts == [2, 2, 1] * 2
    # transformers' last hidden states are normed.
    found = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], reference.model.norm.weight, 1e-6)
    expected = reference.model(token_ids(seqlen)).last_hidden_state
    assert (found - expected).abs().max() < RELATIVE_ERROR * expected.abs().max()


def test_a_device_that_is_not_there_is_refused(pristine_llama):
    source = open_checkpoint(pristine_llama, "llama")
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        LayerwiseModel(source, EngineConfig(session_len=64, device="tpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "internlm2", "qwen3"])
def test_ranges_on_a_gpu_are_those_on_the_cpu(family, tmp_path):
    make_checkpoint(family, tmp_path, dtype=torch.bfloat16)
    source = open_checkpoint(tmp_path, "llama")
    models = (LayerwiseModel(source, EngineConfig(session_len=70, device=device)) for device in ("cuda", "cpu"))
    found, expected = (measure_ranges(model, token_ids(70), offload=True) for model in models)
    assert (found - expected).abs().max() < IN_BFLOAT16 * expected.abs().max()


@pytest.mark.gpu
def test_demo_model_quantised_on_a_gpu_keeps_its_answers(tmp_path):
    calibration = Calibration(str(DEMO / "heldout.jsonl"), samples=8, seqlen=256)
    quantise_checkpoint(DEMO / "checkpoint", tmp_path / "awq", Recipe(128, is_searched=True), calibration,
                        batch_size=4, device="cuda")
    (report,) = read_reports(tmp_path / "awq")
    assert report.top1_agreement > 0.95 and report.kl_divergence < 0.01
