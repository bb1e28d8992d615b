"""KV calibration: the ranges are those of the reference model's cache, and the file is one that the engine takes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.accuracy_report import AccuracyReport, read_reports, store_report
from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import CheckpointError, ConfigError, WorkspaceError
from backend.worker.past_kv_scale import read_past_kv_scale
from backend.workspace import PAST_KV_SCALE, WEIGHTS, Workspace
from converter import calibration_windows, kv_calibration, loss_report
from converter.calibration_windows import Calibration
from converter.convert import convert_checkpoint
from converter.kv_calibration import calibrate_kv, measure_ranges, scales_of
from converter.layerwise import LayerwiseModel
from converter.source import open_checkpoint
from tests.checkpoints import make_checkpoint

CALIBRATION = Calibration(samples=3, seqlen=48)
RELATIVE_ERROR = 1e-4  # float32 on both sides, different order of sums
FAMILIES = ("llama", "internlm", "internlm2", "qwen2", "qwen3", "llama3.1")


@pytest.fixture(autouse=True)
def small_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_windows, "EVALUATION_TOKENS", 256)


@pytest.fixture
def workspace(pristine_llama, tmp_path) -> Path:
    """The workspace of pristine_llama; returns its weights folder."""
    convert_checkpoint("llama", pristine_llama, dst_path=tmp_path / "workspace")
    return tmp_path / "workspace" / WEIGHTS


def changed(checkpoint: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of the checkpoint in which one weight is `value` all over."""
    shutil.copytree(checkpoint, folder)
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name].fill_(value)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@torch.inference_mode()
def reference_ranges(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """[num_layers, 2, K, 2]: smallest and largest of transformers' cache, whose keys are after rotary."""
    cache = model(token_ids, use_cache=True).past_key_values
    heads = [torch.stack((layer.keys, layer.values)) for layer in cache.layers]  # each [2, B, K, L, D]
    return torch.stack([torch.stack((each.amin((1, 3, 4)), each.amax((1, 3, 4))), dim=-1) for each in heads])


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_are_those_of_the_reference_s_cache(family, offload, tmp_path):
    model = make_checkpoint(family, tmp_path)
    token_ids = torch.randint(5, 261, (5, 48), generator=torch.Generator().manual_seed(1))
    layers = LayerwiseModel(open_checkpoint(tmp_path, "llama"), EngineConfig(session_len=48, device="cpu"))
    found, expected = measure_ranges(layers, token_ids, offload), reference_ranges(model, token_ids)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < RELATIVE_ERROR * expected.abs().max()


def test_scales_follow_the_formulas():
    ranges = torch.tensor([[-1.0, 3.0], [-4.0, 2.0], [0.5, 0.5]])
    assert torch.allclose(scales_of(ranges, is_symmetric=False), torch.tensor(
        [[4 / 255, 1.0], [6 / 255, -1.0], [0.0, 0.5]]))
    assert torch.allclose(scales_of(ranges, is_symmetric=True), torch.tensor(
        [[3 / 127, 0.0], [4 / 127, 0.0], [0.5 / 127, 0.0]]))


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_every_value_within_the_range_is_half_a_step_away_at_most(is_symmetric):
    ranges = torch.tensor([-1.7, 3.1])
    scale, zero = scales_of(ranges, is_symmetric)
    values = torch.linspace(-1.7, 3.1, 10_001)
    q = ((values - zero) / scale).round().clamp(-128, 127)
    assert (q * scale + zero - values).abs().max() < 0.5001 * scale


def test_engine_takes_the_file(pristine_llama, workspace):
    file = calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
    source = Workspace(workspace.parents[1])
    engine = EngineConfig(session_len=64, quant_policy=4)
    assert read_past_kv_scale(source, engine, TensorParallel()).shape == (2, 2, 2, 2)
    tensors = load_file(file)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        f"layers.{index}.past_kv_scale": (torch.float32, (2, 2, 2)) for index in range(2)}
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert len(metadata.pop("weights")) == 16 and metadata == {
        "format": "millrace.past_kv_scale", "model_name": "llama", "num_layers": "2", "num_kv_heads": "2",
        "head_dim": "64", "hidden_size": "256", "vocab_size": "320"}


def test_its_loss_is_stored_beside_it(pristine_llama, workspace):
    calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
    (report,) = read_reports(workspace)
    assert report.kv == "int8 (calibrated)" and report.top1_agreement > 0.9


def test_a_second_run_into_the_same_workspace_is_refused_meanwhile(pristine_llama, workspace, monkeypatch):
    measure, refusals = kv_calibration.measure_ranges, []

    def start_another(*given):
        with pytest.raises(CheckpointError, match=r"is being written by another run; .* choose another --output_dir"):
            calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
        refusals.append(given)
        return measure(*given)

    monkeypatch.setattr(kv_calibration, "measure_ranges", start_another)
    assert calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu").is_file() and len(refusals) == 1


def test_scales_of_the_same_model_trained_further_are_refused(pristine_llama, workspace, tmp_path):
    file = calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
    tuned = changed(pristine_llama, tmp_path / "tuned", "model.layers.0.self_attn.v_proj.weight", 1.0)
    convert_checkpoint("llama", tuned, dst_path=tmp_path / "other")
    shutil.copy(file, tmp_path / "other" / PAST_KV_SCALE)
    with pytest.raises(CheckpointError, match=r"is of another model \(weights="):
        read_past_kv_scale(Workspace(tmp_path / "other"), EngineConfig(64, quant_policy=4), TensorParallel())


def test_a_folder_of_no_workspace_gets_the_file_alone(pristine_llama, tmp_path):
    file = calibrate_kv(pristine_llama, tmp_path / "new" / "folder", CALIBRATION, is_symmetric=True, device="cpu")
    assert [each.name for each in file.parent.iterdir()] == ["past_kv_scale.safetensors"]
    assert all((tensor[..., 1] == 0).all() for tensor in load_file(file).values())


def test_folders_where_no_engine_looks_for_scales_are_refused(pristine_llama, workspace):
    root = workspace.parents[1]
    with pytest.raises(WorkspaceError, match=rf"keeps its scales with its weights; use --output_dir {workspace}$"):
        calibrate_kv(pristine_llama, root, CALIBRATION, device="cpu")
    with pytest.raises(WorkspaceError, match="is a checkpoint, but scales are read from a workspace only"):
        calibrate_kv(pristine_llama, pristine_llama, CALIBRATION, device="cpu")
    assert not [*root.glob("*.safetensors"), *pristine_llama.glob("past_kv*"), *workspace.glob("past_kv*")]


OLD = AccuracyReport("llama", "float32", "int8 (calibrated)", "llama", "a text", 10, 2.0, 2.1, 0.0, 1.0, "2026-01-01",
                     {})


def test_a_device_that_runs_out_of_memory_leaves_the_scales(pristine_llama, workspace, monkeypatch, caplog):
    def out_of_memory(*_given):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    online = dataclasses.replace(OLD, kv="int8 (online)")
    for report in (OLD, online):
        store_report(workspace, report)
    monkeypatch.setattr(loss_report, "measure_accuracy", out_of_memory)
    assert calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu").is_file()
    assert caplog.messages[-1] == "the loss was not measured: CUDA out of memory."
    assert read_reports(workspace) == [online]  # that of other scales is gone


@pytest.mark.parametrize("stops_at", ["write_bytes", "replace"])
def test_new_scales_are_at_no_time_beside_the_report_of_old_ones(stops_at, pristine_llama, workspace, monkeypatch):
    def stop(self: Path, *_given: object) -> None:
        if self.suffix == ".unfinished":
            raise KeyboardInterrupt
        original(self, *_given)

    store_report(workspace, OLD)
    original = getattr(Path, stops_at)
    monkeypatch.setattr(Path, stops_at, stop)
    with pytest.raises(KeyboardInterrupt):
        calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
    assert not list(workspace.glob("past_kv*"))
    assert read_reports(workspace) == ([OLD] if stops_at == "write_bytes" else [])


def test_a_damaged_report_is_an_error_before_the_work(pristine_llama, workspace):
    (workspace / "accuracy.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"accuracy\.json is no accuracy report"):
        calibrate_kv(pristine_llama, workspace, CALIBRATION, device="cpu")
    assert not list(workspace.glob("past_kv*"))


def test_one_layer_is_in_memory_at_a_time(tmp_path, layers_one_by_one):
    make_checkpoint("llama", tmp_path / "hf", num_layers=4)
    calibrate_kv(tmp_path / "hf", tmp_path / "out", CALIBRATION, offload=True, device="cpu")
    assert len(layers_one_by_one) == 4


def test_workspace_of_another_shape_is_refused(workspace, tmp_path):
    make_checkpoint("llama", tmp_path / "other", num_layers=3)
    with pytest.raises(WorkspaceError, match=r"holds another model .*: its num_layers is 2, not 3"):
        calibrate_kv(tmp_path / "other", workspace, CALIBRATION, device="cpu")


def test_workspace_of_other_weights_is_refused(workspace, tmp_path):
    make_checkpoint("llama", tmp_path / "other", dtype=torch.bfloat16, seed=1)
    with pytest.raises(WorkspaceError, match=r"of the same shape: their tok_embeddings\.weight differ"):
        calibrate_kv(tmp_path / "other", workspace, CALIBRATION, device="cpu")


def test_workspace_in_another_dtype_is_the_same_model(pristine_llama, tmp_path):
    convert_checkpoint("llama", pristine_llama, dst_path=tmp_path / "workspace", dtype="fp16")
    assert calibrate_kv(pristine_llama, tmp_path / "workspace" / WEIGHTS, CALIBRATION, device="cpu").is_file()


def test_config_outside_of_a_workspace_is_refused(pristine_llama, workspace, tmp_path):
    (tmp_path / "loose").mkdir()
    shutil.copy(workspace / "config.ini", tmp_path / "loose")
    with pytest.raises(WorkspaceError, match="is no workspace's"):
        calibrate_kv(pristine_llama, tmp_path / "loose", CALIBRATION, device="cpu")


def test_ranks_that_cannot_share_the_heads_are_refused(pristine_llama, workspace):
    with pytest.raises(ConfigError, match="tp=3 does not divide"):
        calibrate_kv(pristine_llama, workspace, CALIBRATION, num_tp=3, device="cpu")


def test_activations_that_are_not_finite_name_the_layer_and_write_nothing(pristine_llama, tmp_path):
    broken = changed(pristine_llama, tmp_path / "broken", "model.layers.1.self_attn.v_proj.weight", 3e38)
    with pytest.raises(CheckpointError, match="layer 1 gives NaN or infinite activations"):
        calibrate_kv(broken, tmp_path / "out", CALIBRATION, device="cpu")
    assert not (tmp_path / "out").exists()


def test_quantised_checkpoint_can_be_calibrated(pristine_awq, tmp_path):
    awq, dense = pristine_awq
    found, expected = (load_file(calibrate_kv(folder, tmp_path / folder.name, CALIBRATION, device="cpu"))
                       for folder in (awq, dense))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-3 * float(tensor.abs().max())), name
