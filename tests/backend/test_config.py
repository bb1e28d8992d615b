"""config.ini: what is written is read back, and everything else is refused with a line that helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backend.config import (
    _KEYS,
    EngineConfig,
    ModelConfig,
    QuantConfig,
    RopeConfig,
    check_engine,
    read_config,
    render_config,
)
from backend.errors import ConfigError

MODEL = ModelConfig("internlm2", 100, 64, 2, 4, 2, 16, 128, 1e-5, RopeConfig(16, 1e6, "dynamic", 2.0), 2048, 1, (2, 5))
INT4 = dataclasses.replace(MODEL, dtype="float16", quant=QuantConfig(32))
ENGINE = EngineConfig(session_len=1024, cache_max_entry_count=0.5, tp=2)


def written(folder: Path, change: tuple[str, str] = ("", ""), model: ModelConfig = MODEL) -> Path:
    file = folder / "config.ini"
    file.write_text(render_config(model, ENGINE).replace(*change) if change[0] else render_config(model, ENGINE))
    return file


@pytest.mark.parametrize("model", [MODEL, INT4], ids=["dense", "int4"])
def test_config_is_read_back_as_it_was_written(tmp_path, model):
    assert read_config(written(tmp_path, model=model)) == (model, ENGINE)


def test_quantised_weights_add_their_own_keys_and_dense_ones_keep_theirs(tmp_path):
    dense, int4 = written(tmp_path).read_text(), written(tmp_path, model=INT4).read_text()
    assert 'weight_type = "bf16"\n' in dense
    keys = 'weight_type = "int4"\nactivation_type = "fp16"\ngroup_size = 32\n'
    assert int4 == dense.replace('weight_type = "bf16"\n', keys)


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


@pytest.mark.parametrize("policy", [0, 4, 8])
def test_every_kv_cache_format_can_be_written_and_read(tmp_path, policy):
    assert read_config(written(tmp_path, ("quant_policy = 0", f"quant_policy = {policy}")))[1].quant_policy == policy


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
    (("weight_type = \"bf16\"", "weight_type = \"int3\""), "it needs one of fp16, bf16, fp32, .* or int4"),
    (("weight_type = \"bf16\"", "weight_type = \"int4\""), 'weight_type = "int4" needs activation_type'),
    (("weight_type = \"bf16\"", "group_size = 32"), 'group_size is for weight_type = "int4"; remove it'),
    (("cache_block_seq_len = 64", "cache_block_seq_len = 63"), "use a power of two"),
    (("cache_max_entry_count = 0.5", "cache_max_entry_count = 1.5"), "use a share in"),
    (("quant_policy = 0", "quant_policy = 2"), r"quant_policy=2 is no KV cache format; use 0 .*, 8 .* or 4"),
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


@pytest.mark.parametrize(("change", "message"), [
    (("group_size = 32", "group_size = 48"), "group_size=48 is not supported; use one of 32, 64, 128"),
    (("group_size = 32", "group_size = 128"), "group_size=128 does not divide the 64 inputs of w_qkv and w13 of "
                                              r"internlm2; quantise in groups of one of \[32, 64\]"),
    (("group_size = 32\n", ""), "needs group_size; convert the checkpoint again"),
    (('activation_type = "fp16"', 'activation_type = "int4"'), "activation_type = 'int4' does not work; it needs one"),
    (("size_per_head = 16", "size_per_head = 20"), "size_per_head=20 .* is not a multiple of the 8 weights"),
])
def test_wrong_keys_of_quantised_weights_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_config(written(tmp_path, change, INT4))
    assert "config.ini" in str(error.value)


@pytest.mark.parametrize(("group_size", "tp", "message"), [
    (64, 2, r"tp=2 does not divide wo's groups of 64 inputs=1 of internlm2; use tp in \[1\]"),
    (32, 2, None), (64, 1, None)])
def test_each_rank_needs_whole_groups(group_size, tp, message):
    model = dataclasses.replace(MODEL, quant=QuantConfig(group_size))
    engine = dataclasses.replace(ENGINE, tp=tp)
    if message is None:
        check_engine(model, engine)
    else:
        with pytest.raises(ConfigError, match=message):
            check_engine(model, engine)


def test_dynamic_rope_stretches_to_any_session():
    check_engine(MODEL, EngineConfig(session_len=100_000))
