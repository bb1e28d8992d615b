"""auto_awq as a whole: the folder that it writes, its memory, interruptions, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.quantizers import AutoQuantizationConfig

from backend.accuracy_report import ACCURACY_FILE, read_reports
from backend.config import QuantConfig
from backend.errors import CapacityError, CheckpointError, ConfigError, MillraceError
from backend.model_source import ModelSource, open_model
from converter import calibration_windows, loss_report, safetensors_file
from converter import quantise_checkpoint as module
from converter.awq_checkpoint import AwqCheckpoint
from converter.awq_layer import Recipe
from converter.calibration_windows import Calibration
from converter.checkpoint import open_hf
from converter.quantise_checkpoint import quantise_checkpoint
from tests.awq_checkpoints import dequantise
from tests.backend.models.hugging_face import WeightsSource
from tests.backend.step_driver import StepDriver
from tests.checkpoints import FAMILIES, make_checkpoint, to_bin_shards

RECIPE = Recipe(group_size=64, is_searched=True)
CALIBRATION = Calibration(samples=3, seqlen=32)
PROMPT = list(range(5, 45))
DEMO = Path(__file__).parents[2] / "demo"
KINDS = ("qweight", "qzeros", "scales")


@pytest.fixture(autouse=True)
def small_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_windows, "EVALUATION_TOKENS", 256)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of three layers; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine") / "llama"
    make_checkpoint("llama", folder, num_layers=3, dtype=torch.bfloat16)
    return folder


def quantise(source: Path, destination: Path, recipe: Recipe = RECIPE) -> None:
    quantise_checkpoint(source, destination, recipe, CALIBRATION, device="cpu")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {name: load_file(folder / name) for name in set(index["weight_map"].values())}
    tensors = {name: files[file][name] for name, file in index["weight_map"].items()}
    assert sum(map(len, files.values())) == len(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


def logits(source: ModelSource) -> Tensor:
    engine = source.engine.with_options({"max_batch_size": 1, "session_len": 64, "device": "cpu"})
    driver = StepDriver(WeightsSource(source.model, engine, dict(source.tensors())))
    return driver.logits([(0, 0, len(PROMPT))], [driver.setup(0, PROMPT)])


def dense_twin(folder: Path, source: Path, into: Path) -> Path:
    """The source's folder with the weights that the quantised folder's words stand for, in float32."""
    shutil.copytree(source, into, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = tensors_of(folder)
    dense = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(KINDS)}
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        dense[f"{name}.weight"] = dequantise(*(tensors[f"{name}.{kind}"] for kind in KINDS))
    save_file(dense, into / "model.safetensors", metadata={"format": "pt"})
    return into


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_of_a_family_is_read_as_what_its_words_stand_for(family, tmp_path):
    make_checkpoint(family, tmp_path / "hf", dtype=torch.bfloat16)
    quantise(tmp_path / "hf", tmp_path / "awq")
    source = open_model(tmp_path / "awq", "llama", "awq")
    original = open_model(tmp_path / "hf", "llama")
    assert source.model == dataclasses.replace(original.model, quant=QuantConfig(64))
    found = logits(source)
    twin = logits(open_model(dense_twin(tmp_path / "awq", tmp_path / "hf", tmp_path / "twin"), "llama"))
    assert (found - twin).abs().max() < 1e-4 * twin.abs().max()
    exact = logits(original)
    assert (found - exact).norm() < 0.9 * exact.norm()  # random models bear it badly; another's would be 1.4 away


def test_demo_model_keeps_its_answers(tmp_path):
    calibration = Calibration(str(DEMO / "heldout.jsonl"), samples=8, seqlen=256)
    quantise_checkpoint(DEMO / "checkpoint", tmp_path / "awq", Recipe(128, is_searched=True), calibration, device="cpu")
    (report,) = read_reports(tmp_path / "awq")
    assert report.top1_agreement > 0.96 and report.kl_divergence < 0.01 and report.perplexity_increase < 0.03


def test_folder_says_how_it_is_quantised_and_keeps_all_else(pristine, tmp_path):
    quantise(pristine, tmp_path / "awq")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (pristine, tmp_path / "awq"))
    as_transformers_reads_it = AutoQuantizationConfig.from_dict(after["quantization_config"])
    assert (as_transformers_reads_it.bits, as_transformers_reads_it.group_size) == (4, 64)
    assert after.pop("quantization_config") == {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 64,
                                                "zero_point": True}
    assert after == before
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "awq" / name).read_bytes() == (pristine / name).read_bytes()
    tensors, original = tensors_of(tmp_path / "awq"), load_file(pristine / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(tensors[name], original[name])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.int32, torch.float16, torch.bfloat16}
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_its_loss_is_stored_beside_it(pristine, tmp_path):
    quantise(pristine, tmp_path / "awq")
    (report,) = read_reports(tmp_path / "awq")
    assert "int4" in report.weights and report.num_tokens > 0 and report.top1_agreement > 0.5


def test_a_loss_that_is_not_measured_leaves_no_report_of_the_source(pristine, tmp_path, monkeypatch):
    def out_of_memory(*_given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    source = Path(shutil.copytree(pristine, tmp_path / "hf"))
    (source / ACCURACY_FILE).write_text('{"reports": []}')
    monkeypatch.setattr(loss_report, "measure_accuracy", out_of_memory)
    quantise(source, tmp_path / "awq")
    assert not (tmp_path / "awq" / ACCURACY_FILE).exists()


def test_a_run_that_is_interrupted_while_the_loss_is_measured_goes_on_there(pristine, tmp_path, monkeypatch):
    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loss_report, "measure_accuracy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantise(pristine, tmp_path / "awq")
    assert not (tmp_path / "awq").exists()
    calls = count_quantised(monkeypatch)
    quantise(pristine, tmp_path / "awq")
    (report,) = read_reports(tmp_path / "awq")
    assert not calls and report.model_name == "awq" and not (tmp_path / ".awq.partial").exists()


@pytest.mark.parametrize("error", [CapacityError, RuntimeError])
def test_a_loss_that_cannot_be_measured_leaves_the_weights(error, pristine, tmp_path, monkeypatch):
    def fails(*_given: object) -> None:
        raise error("too small")

    monkeypatch.setattr(loss_report, "measure_accuracy", fails)
    with pytest.raises(error):
        quantise(pristine, tmp_path / "awq")
    assert open_model(tmp_path / "awq", "llama").model.quant == QuantConfig(64)
    assert not (tmp_path / ".awq.partial").exists()


def test_float32_becomes_bfloat16_and_bin_files_are_read(tmp_path):
    make_checkpoint("qwen2", tmp_path / "hf", tie_word_embeddings=True)
    to_bin_shards(tmp_path / "hf")
    quantise(tmp_path / "hf", tmp_path / "awq")
    assert open_model(tmp_path / "awq", "qwen").model.dtype == "bfloat16"
    assert not list((tmp_path / "awq").glob("*.bin*"))
    assert json.loads((tmp_path / "awq" / "config.json").read_text())["dtype"] == "bfloat16"


def test_one_layer_is_in_memory_at_a_time(pristine, tmp_path, layers_one_by_one):
    quantise(pristine, tmp_path / "awq")
    assert len(layers_one_by_one) == 3 * 3  # quantised, then measured as they were and as they are


@pytest.fixture
def interrupted(pristine, tmp_path, monkeypatch, caplog) -> Path:
    """A destination whose making was stopped after two of three layers."""
    write = AwqCheckpoint.write_layer

    def stop_at_the_last(self: AwqCheckpoint, index: int, tensors: dict[str, Tensor]) -> None:
        if index == 2:
            raise KeyboardInterrupt
        write(self, index, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(AwqCheckpoint, "write_layer", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            quantise(pristine, tmp_path / "awq")
    assert not (tmp_path / "awq").exists() and "2 of 3 layers are kept" in caplog.text
    return tmp_path / "awq"


def count_quantised(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    original = module.quantise_layer
    monkeypatch.setattr(module, "quantise_layer", lambda *given: (calls.append(given), original(*given))[1])
    return calls


def test_interrupted_run_goes_on_at_the_layer_it_had_reached(interrupted, pristine, tmp_path, monkeypatch, caplog):
    calls = count_quantised(monkeypatch)
    quantise(pristine, interrupted)
    assert len(calls) == 1 and "deleted" not in caplog.text
    quantise(pristine, tmp_path / "at_once")
    found, expected = tensors_of(interrupted), tensors_of(tmp_path / "at_once")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_run_with_other_arguments_starts_anew_and_says_what_it_deletes(interrupted, pristine, monkeypatch, caplog):
    calls = count_quantised(monkeypatch)
    caplog.clear()
    quantise(pristine, interrupted, Recipe(group_size=32, is_searched=True))
    assert len(calls) == 3
    (warning,) = [message for message in caplog.messages if "deleted" in message]
    assert "awq.partial holds 2 finished layers of a run with other arguments" in warning and "--work-dir" in warning


def test_run_of_a_changed_checkpoint_starts_anew(interrupted, pristine, tmp_path, monkeypatch):
    changed = Path(shutil.copytree(pristine, tmp_path / "changed"))
    os.utime(changed / "model.safetensors")
    calls = count_quantised(monkeypatch)
    quantise(changed, interrupted)
    assert len(calls) == 3


def test_full_disk_leaves_no_half_written_folder_and_the_run_goes_on(pristine, tmp_path, monkeypatch):
    write = safetensors_file._write_all

    def fail_in_the_second_layer(stream, view):
        if "model-00002" in stream.name and len(view) < 10_000:
            raise OSError(28, "No space left on device")
        write(stream, view)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file, "_write_all", fail_in_the_second_layer)
        with pytest.raises(CheckpointError, match=r"No space left on device; make room, then run the same command"):
            quantise(pristine, tmp_path / "awq")
    assert not (tmp_path / "awq").exists()
    partial = tmp_path / ".awq.partial"
    assert sorted(file.name for file in partial.iterdir()) == ["fingerprint.json", "model-00001-of-00004.safetensors"]
    calls = count_quantised(monkeypatch)
    quantise(pristine, tmp_path / "awq")
    assert len(calls) == 2


def test_too_little_space_is_said_before_anything_is_computed(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 10))
    calls = count_quantised(monkeypatch)
    with pytest.raises(CheckpointError, match=r"0\.0 GiB free, but what is still to be written needs"):
        quantise(pristine, tmp_path / "awq")
    assert not calls and not list(tmp_path.glob("*awq*")) and not list(tmp_path.glob(".awq*"))


def test_second_run_into_the_same_folder_is_refused_while_the_first_one_runs(pristine, tmp_path, monkeypatch):
    write, refusals = AwqCheckpoint.write_layer, []

    def start_another(self: AwqCheckpoint, index: int, tensors: dict[str, Tensor]) -> None:
        write(self, index, tensors)
        if not refusals:
            with pytest.raises(CheckpointError, match="is being written by another run; wait") as refused:
                AwqCheckpoint(tmp_path / "awq", open_hf(pristine), 3, {"other": "arguments"})
            refusals.append(refused)

    monkeypatch.setattr(AwqCheckpoint, "write_layer", start_another)
    quantise(pristine, tmp_path / "awq")
    assert refusals and open_model(tmp_path / "awq", "llama").model.quant == QuantConfig(64)


def test_destination_that_cannot_be_written_is_no_full_disk(pristine):
    with pytest.raises(CheckpointError, match=r"cannot be written: .*; choose another --work-dir$"):
        quantise(pristine, Path("/dev/null/awq"))


def test_weights_whose_scales_have_no_float16_are_refused_by_name(pristine, tmp_path):
    huge = Path(shutil.copytree(pristine, tmp_path / "huge"))
    tensors = load_file(huge / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = 2e6
    save_file(tensors, huge / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.scales .* beyond 65504"):
        quantise(huge, tmp_path / "awq")
    assert not (tmp_path / "awq").exists()


def test_activations_that_are_not_finite_name_the_layer(pristine, tmp_path):
    broken = Path(shutil.copytree(pristine, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer 1 gives NaN or infinite activations .* download it again$"):
        quantise(broken, tmp_path / "awq")
    assert not list(tmp_path.glob("*awq*"))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_what_is_not_finite_outside_of_layers_is_found_first(name, pristine, tmp_path, monkeypatch):
    broken = Path(shutil.copytree(pristine, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    calls = count_quantised(monkeypatch)
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or infinite values; the checkpoint is damaged"):
        quantise(broken, tmp_path / "awq")
    assert not calls and not list(tmp_path.glob("*awq*"))


@pytest.mark.parametrize("group_size", [128])
def test_group_size_that_does_not_divide_names_those_that_do(group_size, pristine, tmp_path):
    with pytest.raises(ConfigError, match=r"group_size=128 does not divide the 192 inputs .* one of \[32, 64\]"):
        quantise(pristine, tmp_path / "awq", Recipe(group_size, True))


def test_destination_in_use_is_refused(pristine, tmp_path):
    (tmp_path / "awq").mkdir()
    (tmp_path / "awq" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        quantise(pristine, tmp_path / "awq")
    for destination in (pristine, pristine / "awq", pristine.parent):
        with pytest.raises(CheckpointError, match=r"holds the checkpoint .*, or lies in it"):
            quantise(pristine, destination)


def test_empty_destination_is_filled(pristine, tmp_path):
    (tmp_path / "awq").mkdir()
    quantise(pristine, tmp_path / "awq")
    assert open_model(tmp_path / "awq", "llama").model.quant == QuantConfig(64)


def test_quantised_checkpoint_is_refused(pristine_awq, tmp_path):
    with pytest.raises(CheckpointError, match="is quantised already; give the unquantised checkpoint"):
        quantise(pristine_awq[0], tmp_path / "again")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(MillraceError, match="is no folder"):
        quantise(tmp_path / "nothing", tmp_path / "awq")


def test_windows_longer_than_the_model_knows_are_refused(pristine, tmp_path):
    with pytest.raises(ConfigError, match=r"600 tokens exceed the 512 positions .* use --calib_seqlen 512"):
        quantise_checkpoint(pristine, tmp_path / "awq", RECIPE, Calibration(samples=1, seqlen=600), device="cpu")
