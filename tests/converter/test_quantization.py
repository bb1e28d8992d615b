"""Which quantisation is ours: AWQ in each spelling; every other kind, and damage, is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from backend import LLM
from backend.config import QuantConfig
from backend.errors import CheckpointError, ConfigError, WorkspaceError
from backend.model_source import open_model
from converter.canonical import canonicalise
from converter.checkpoint import open_hf
from converter.convert import convert_checkpoint
from tests.awq_checkpoints import dequantise, make_awq_pair, quantise_checkpoint, rewrite_config, rewrite_tensors
from tests.checkpoints import make_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_older_file_of_autoawq_says_the_same(awq):
    rewrite_config(awq, quantization_config=None)
    (awq / "quant_config.json").write_text(json.dumps(
        {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}))
    assert canonicalise(open_hf(awq), "llama").model.quant == QuantConfig(64)


def test_the_configuration_that_transformers_writes_is_read(awq):
    table = transformers.AwqConfig(bits=4, group_size=64, zero_point=True).to_dict()
    rewrite_config(awq, quantization_config=json.loads(json.dumps(table)))
    assert canonicalise(open_hf(awq), "llama").model.quant == QuantConfig(64)


def test_modules_that_no_one_quantises_may_be_named(awq):
    configure(awq, modules_to_not_convert=["lm_head", "visual"])
    assert canonicalise(open_hf(awq), "llama").model.quant == QuantConfig(64)


def configure(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "config.json").read_text())["quantization_config"]
    rewrite_config(folder, quantization_config={**table, **changes})


@pytest.mark.parametrize(("changes", "message"), [
    ({"bits": 8}, "AWQ weights of 8 bits are not supported; use an AWQ version of it in 4 bits, or the unq"),
    ({"quant_method": "gptq"}, "quantised with 'gptq' are not supported; use an AWQ version"),
    ({"quant_method": "gptq", "desc_act": True}, "in activation order .* are not supported; use an AWQ version"),
    ({"version": "gemv"}, "AWQ's layout 'gemv' is not supported; use one in the layout 'gemm'"),
    ({"version": "marlin"}, "AWQ's layout 'marlin' is not supported"),
    ({"zero_point": False}, r"without zero points \(zero_point=False\) are not supported; use a version with"),
    ({"group_size": -1}, "group_size=-1 is not supported; use an AWQ version in groups of 32, 64, 128"),
    ({"group_size": 128}, r"tensor .*q_proj.qzeros has shape \[4, 32\], but config.json asks for "
                          r"\[2, 32\]"),
    ({"backend": "llm-awq"}, "AWQ's layout 'llm-awq' is not supported"),
])
def test_another_kind_of_quantisation_is_refused(awq, changes, message):
    configure(awq, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        open_model(awq, "llama")
    assert "\n" not in str(error.value)


def drop(suffix):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(suffix)]


def unpack_one(tensors: dict[str, Tensor]) -> None:
    layer = "model.layers.1.mlp.up_proj"
    tensors[f"{layer}.weight"] = dequantise(*(tensors.pop(f"{layer}.{kind}")
                                              for kind in ("qweight", "qzeros", "scales"))).half()


def poison(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.scales"][3, 4] = torch.inf


@pytest.mark.parametrize(("change", "message"), [
    (drop("v_proj.scales"), "tensor model.layers.0.self_attn.v_proj.scales is in no file; the checkpoint is"),
    (drop("qzeros"), "qzeros is in no file; the checkpoint is incomplete, download it again"),
    (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.g_idx": torch.zeros(4)}), "activation order"),
    (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(256, 64, dtype=torch.int32)}),
     r"up_proj.qweight has shape \[256, 64\], but config.json asks for \[256, 48\]"),
    (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(256, 48)}),
     "up_proj.qweight is stored as float32, but AWQ's is int32"),
    (unpack_one, r"layers.1.mlp.up_proj is not quantised but others are \(config.json's modules_to_not_convert\)"),
    (poison, "tensor model.layers.1.mlp.down_proj.scales holds NaN or infinite values"),
])
def test_damaged_tensors_are_named_and_nothing_is_written(awq, tmp_path, change, message):
    rewrite_tensors(awq, change)
    with pytest.raises(CheckpointError, match=message) as error:
        convert_checkpoint("llama", awq, dst_path=tmp_path / "workspace")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "workspace").exists()


def test_groups_that_do_not_divide_the_inputs_are_refused(tmp_path):
    make_checkpoint("llama", tmp_path / "dense", intermediate_size=192)
    quantise_checkpoint(tmp_path / "dense", tmp_path / "awq", 64)
    configure(tmp_path / "awq", group_size=128)
    with pytest.raises(CheckpointError, match=r"config.json: group_size=128 does not divide the 192 inputs of w2 of "
                                              r"llama; quantise in groups of one of \[32, 64\]"):
        open_model(tmp_path / "awq", "llama")


def test_quantised_tensors_without_a_configuration_are_refused(awq):
    rewrite_config(awq, quantization_config=None)
    with pytest.raises(CheckpointError, match=r"qweight is quantised, but config\.json has no quantization_config"):
        open_model(awq, "llama")


def test_groups_that_ranks_do_not_divide_are_refused_with_the_divisors(tmp_path):
    awq, _ = make_awq_pair("llama", tmp_path, 128)  # three groups along 384
    with pytest.raises(ConfigError, match=r"tp=2 does not divide w2's groups of 128 inputs=3 of llama; "
                                          r"use tp in \[1\]"):
        convert_checkpoint("llama", awq, dst_path=tmp_path / "workspace", tp=2)
    with pytest.raises(ConfigError, match="tp=2 does not divide w2's groups of 128 inputs=3"):
        LLM(awq, "llama", tp=2, device="cpu")


def test_a_dense_folder_is_no_awq_one(pristine_awq, tmp_path):
    for options in ({"model_format": "awq"}, {"group_size": 64}):
        with pytest.raises(CheckpointError, match="is no AWQ checkpoint, its weights are not quantised; use the"):
            convert_checkpoint("llama", pristine_awq[1], dst_path=tmp_path / "workspace", **options)
    with pytest.raises(CheckpointError, match="is no AWQ checkpoint"):
        LLM(pristine_awq[1], "llama", model_format="awq")


def test_another_group_size_than_the_folders_is_refused(pristine_awq, tmp_path):
    with pytest.raises(CheckpointError, match="in groups of 64, not of 128; use --group_size 64, or leave it out"):
        convert_checkpoint("llama", pristine_awq[0], "awq", tmp_path / "workspace", group_size=128)


def test_a_model_format_for_a_workspace_has_to_be_its_own(pristine_awq, tmp_path):
    convert_checkpoint("llama", pristine_awq[0], dst_path=tmp_path / "awq")
    convert_checkpoint("llama", pristine_awq[1], dst_path=tmp_path / "dense")
    assert open_model(tmp_path / "awq", model_format="awq").model.quant == QuantConfig(64)
    with pytest.raises(WorkspaceError, match="is a workspace of unquantised weights, not of the format awq; leave"):
        open_model(tmp_path / "dense", model_format="awq")
    with pytest.raises(WorkspaceError, match="is a workspace of quantised weights, not of the format llama; leave"):
        open_model(tmp_path / "awq", model_format="llama")


def test_an_unknown_model_format_is_refused(pristine_awq):
    with pytest.raises(ConfigError, match="model_format='gptq' is not known; use one of hf, awq, llama"):
        open_model(pristine_awq[0], model_format="gptq")
