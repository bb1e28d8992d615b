"""config.ini: what is written is read back, and everything else is refused with a line that helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backend.config import _KEYS, EngineConfig, ModelConfig, RopeConfig, check_engine, read_config, render_config
from backend.errors import ConfigError

MODEL = ModelConfig("internlm2", 100, 64, 2, 4, 2, 16, 128, 1e-5, RopeConfig(16, 1e6, "dynamic", 2.0), 2048, 1, (2, 5))
ENGINE = EngineConfig(session_len=1024, cache_max_entry_count=0.5, tp=2)


def written(folder: Path, change: tuple[str, str] = ("", "")) -> Path:
    file = folder / "config.ini"
    file.write_text(render_config(MODEL, ENGINE).replace(*change) if change[0] else render_config(MODEL, ENGINE))
    return file


def test_config_is_read_back_as_it_was_written(tmp_path):
    assert read_config(written(tmp_path)) == (MODEL, ENGINE)


def test_every_engine_key_is_explained_below_the_models_keys(tmp_path):
    model, engine = written(tmp_path).read_text().split("\n\n")
    assert all(" = " in line and "#" not in line for line in model.splitlines()[2:])
    explained = [line.partition(" = ")[0] for line in engine.splitlines()[1:] if "  # " in line]
    assert explained == [key for key, (holder, _) in _KEYS.items() if holder == "engine"]


@pytest.mark.parametrize(("spelling", "name"), [("fp16", "float16"), ("bfloat16", "bfloat16"), ("fp32", "float32")])
def test_a_dtype_may_be_spelt_either_way(tmp_path, spelling, name):
    assert EngineConfig(session_len=8, dtype=spelling).dtype == name
    assert dataclasses.replace(MODEL, dtype=spelling).dtype == name
    changed = written(tmp_path, ('weight_type = "bf16"', f'weight_type = "{spelling}"'))
    assert read_config(changed)[0].dtype == name


@pytest.mark.parametrize("by", ["a key", "a file"])
def test_an_original_lmdeploy_workspace_has_to_be_converted_again(tmp_path, by):
    key = "step_length = 1\n" if by == "a key" else ""
    (tmp_path / "config.ini").write_text(f"[llama]\nmodel_name = internlm\n{key}")
    if by == "a file":
        (tmp_path / "norm.weight").touch()
    with pytest.raises(ConfigError, match="is from an original LMDeploy workspace; convert the checkpoint again"):
        read_config(tmp_path / "config.ini")


def test_tensor_para_size_is_tp(tmp_path):
    assert read_config(written(tmp_path, ("tp = 2", "tensor_para_size = 4")))[1].tp == 4


def test_integer_end_id_is_one_id(tmp_path):
    assert read_config(written(tmp_path, ("end_id = [2, 5]", "end_id = 2")))[0].eos_token_ids == (2,)


@pytest.mark.parametrize(("change", "message"), [
    (("head_num", "head_mun"), "unknown key 'head_mun'; did you mean 'head_num'"),
    (('model_name = "internlm2"', "model_name = internlm2"),
     r'line 4: put quotes around internlm2: model_name = "internlm2"$'),
    (("tp = 2", "tp = 2 3"), "line 40: 'tp = 2 3 .*' is not valid TOML: Expected newline"),
    (("head_num = 4\n", ""), "missing head_num"),
    (("head_num = 4", 'head_num = "4"'), "head_num = '4' does not work; it needs an integer"),
    (("tp = 2", "tp = 0"), "tp=0 does not work; use an integer >= 1"),
    (("kv_head_num = 2", "kv_head_num = 0"), "kv_head_num=0 is too small"),
    (("num_layer = 2", "num_layer = -1"), "num_layer=-1 is too small"),
    (("rotary_embedding = 16", "rotary_embedding = 15"), "rotary_embedding=15 does not work; use an even number"),
    (("rope_scaling_factor = 2.0", "rope_scaling_factor = 0"), "rope_scaling_factor=0.0 does not work"),
    (("cache_max_entry_count = 0.5", "cache_max_entry_count = nan"), "use a share in"),
    (("cache_max_entry_count = 0.5", "cache_max_entry_count = inf"), "use a share in"),
    (("format_version = 1", "format_version = 9"), "format_version=9"),
    (("kv_head_num = 2", "kv_head_num = 3"), "head_num=4 is not a multiple of kv_head_num=3"),
    (("[llama]", "[model]"), r"it needs exactly one, \[llama\]"),
    (("weight_type = \"bf16\"", "weight_type = \"int3\""), "it needs one of fp16, bf16, fp32, float16"),
    (("cache_block_seq_len = 64", "cache_block_seq_len = 63"), "use a power of two"),
    (("cache_max_entry_count = 0.5", "cache_max_entry_count = 1.5"), "use a share in"),
])
def test_a_wrong_config_is_refused_with_its_file_and_key(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_config(written(tmp_path, change))
    assert "config.ini" in str(error.value)


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown engine option 'session_length'; did you mean 'session_len'"):
        ENGINE.with_options({"session_length": 5})


def test_options_that_are_none_change_nothing():
    assert ENGINE.with_options({"session_len": None, "tp": 1}) == EngineConfig(1024, cache_max_entry_count=0.5)


@pytest.mark.parametrize(("model", "engine", "message"), [
    ({}, {"tp": 4}, r"tp=4 does not divide kv_head_num=2 of internlm2; use tp in \[1, 2\]"),
    ({"intermediate_size": 129}, {"tp": 2}, r"tp=2 does not divide inter_size=129 of internlm2; use tp in \[1\]"),
    ({"sliding_window": 512}, {}, "session_len=1024 exceeds the 512 tokens .* window; use session_len=512"),
    ({"rope": RopeConfig(16)}, {"session_len": 2049}, "exceeds the 2048 positions .*; use session_len=2048"),
    ({"rope": RopeConfig(16, scaling_type="linear", factor=2.0)}, {"session_len": 4097}, "exceeds the 4096 positions"),
])
def test_what_the_model_cannot_do_is_refused_with_what_it_can(model, engine, message):
    with pytest.raises(ConfigError, match=message):
        check_engine(dataclasses.replace(MODEL, **model), dataclasses.replace(ENGINE, **engine))


def test_dynamic_rope_stretches_to_any_session():
    check_engine(MODEL, EngineConfig(session_len=100_000))
