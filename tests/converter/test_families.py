"""Each family's names and layout become the one canonical decoder; what cannot is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.config import RopeConfig
from backend.errors import CheckpointError
from converter.canonical import canonicalise
from converter.checkpoint import open_hf, open_meta
from converter.families.rope import rope_config
from tests.checkpoints import FAMILIES, make_checkpoint, make_meta_checkpoint, to_bin_shards


def expected_tensors(model) -> dict[str, torch.Tensor]:
    """Canonical tensors of a transformers model with LLaMA's names, by plain concatenation."""
    state = model.state_dict()
    expected = {"tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"],
                "output.weight": state["lm_head.weight"]}
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        for kind in ("weight", "bias"):
            if f"{theirs}.self_attn.q_proj.{kind}" in state:
                expected[f"{ours}.attention.w_qkv.{kind}"] = torch.cat(
                    [state[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"])
        expected[f"{ours}.feed_forward.w13.weight"] = torch.cat(
            [state[f"{theirs}.mlp.{name}_proj.weight"] for name in ("gate", "up")])
        for source, target in (("input_layernorm.weight", "attention_norm.weight"),
                               ("post_attention_layernorm.weight", "ffn_norm.weight"),
                               ("self_attn.o_proj.weight", "attention.wo.weight"),
                               ("self_attn.o_proj.bias", "attention.wo.bias"),
                               ("self_attn.q_norm.weight", "attention.q_norm.weight"),
                               ("self_attn.k_norm.weight", "attention.k_norm.weight"),
                               ("mlp.down_proj.weight", "feed_forward.w2.weight")):
            if f"{theirs}.{source}" in state:
                expected[f"{ours}.{target}"] = state[f"{theirs}.{source}"]
    return expected


def assert_same_tensors(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor[:], expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_of_a_family_are_the_reference_models_fused(family, tmp_path):
    model = make_checkpoint(family, tmp_path, num_layers=3)
    assert_same_tensors(canonicalise(open_hf(tmp_path), family).tensors, expected_tensors(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_of_a_family_is_the_reference_models(family, tmp_path):
    reference = make_checkpoint(family, tmp_path, head_dim=80, dtype=torch.float16).config
    model = canonicalise(open_hf(tmp_path), family).model
    assert (model.hidden_size, model.num_heads, model.num_kv_heads, model.head_dim) == (
        reference.hidden_size, reference.num_attention_heads, reference.num_key_value_heads, 80)
    assert (model.vocab_size, model.intermediate_size, model.num_layers) == (320, 192, 2)
    assert (model.norm_eps, model.max_position_embeddings) == (reference.rms_norm_eps, 512)
    assert (model.rope.theta, model.rope.dim) == (reference.rope_parameters["rope_theta"], 80)
    assert (model.bos_token_id, model.eos_token_ids, model.dtype) == (1, (2, 4), "float16")
    assert model.attention_bias == (family in ("internlm", "qwen2"))
    assert model.output_bias == (family == "internlm")
    assert model.qk_norm == (family == "qwen3")
    assert model.sliding_window == (256 if family == "mistral" else None)


def test_llama31_keeps_its_rope_scaling(tmp_path):
    make_checkpoint("llama3.1", tmp_path)
    assert canonicalise(open_hf(tmp_path), "llama3.1").model.rope == RopeConfig(
        64, 500000.0, "llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=64)


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_tied_output_is_the_embedding(family, tmp_path):
    model = make_checkpoint(family, tmp_path, tie_word_embeddings=True)
    assert_same_tensors(canonicalise(open_hf(tmp_path), family).tensors, expected_tensors(model))


def test_bin_shards_give_the_same_tensors(tmp_path):
    model = make_checkpoint("internlm", tmp_path, dtype=torch.bfloat16)
    to_bin_shards(tmp_path)
    canonical = canonicalise(open_hf(tmp_path), "internlm")
    assert canonical.model.dtype == "bfloat16"
    in_float32 = {name: tensor[:].float() for name, tensor in canonical.tensors.items()}
    assert_same_tensors(in_float32, expected_tensors(model))


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("splits_vocabulary", [False, True])
def test_metas_format_gives_the_same_tensors(num_shards, splits_vocabulary, tmp_path):
    model = make_checkpoint("llama", tmp_path / "hf")
    make_meta_checkpoint(tmp_path / "meta", model, num_shards, splits_vocabulary)
    canonical = canonicalise(open_meta(tmp_path / "meta"), "llama")
    assert_same_tensors(canonical.tensors, expected_tensors(model))
    sizes = canonical.model
    assert (sizes.num_kv_heads, sizes.vocab_size, sizes.intermediate_size) == (2, 320, 192)


def test_metas_scaled_rope_is_llama31s(tmp_path):
    make_meta_checkpoint(tmp_path / "meta", make_checkpoint("llama", tmp_path / "hf"))
    rewrite_json(tmp_path / "meta" / "params.json", use_scaled_rope=True, rope_theta=500000.0)
    model = canonicalise(open_meta(tmp_path / "meta"), "llama3.1").model
    assert model.rope == RopeConfig(64, 500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    assert model.max_position_embeddings == 131072


def test_another_dtype_is_cast(llama):
    canonical = canonicalise(open_hf(llama), "llama", "float16")
    before = canonicalise(open_hf(llama), "llama").tensors
    assert canonical.model.dtype == "float16"
    assert_same_tensors(canonical.tensors, {name: tensor[:].half() for name, tensor in before.items()})


def test_stored_rotary_frequencies_are_skipped(llama):
    add_tensor(llama, "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert "layers.0.attention.w_qkv.weight" in canonicalise(open_hf(llama), "llama").tensors


def test_an_unknown_tensor_is_refused_by_name(llama):
    add_tensor(llama, "model.layers.0.self_attn.sinks")
    with pytest.raises(CheckpointError, match=r"extra.safetensors: tensor model.layers.0.self_attn.sinks: unknown"):
        canonicalise(open_hf(llama), "llama")


def test_a_wrong_shape_names_file_and_tensor(llama):
    rewrite_json(llama / "config.json", intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape "
                                              r"\[192, 256\], but config.json asks for \[128, 256\]"):
        canonicalise(open_hf(llama), "llama")


def test_a_tensor_in_no_file_is_named(llama):
    rewrite_json(llama / "config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.2.input_layernorm.weight is in no file"):
        canonicalise(open_hf(llama), "llama")


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["MixtralForCausalLM"]}, r"architecture MixtralForCausalLM is not supported; supported are "
                                                r"LLaMA.*InternLM2.*Qwen3.*Mistral"),
    ({"architectures": ["InternVLChatModel"]}, r"architecture InternVLChatModel is not supported"),
    ({"architectures": None, "model_type": "bloom"}, r"architecture bloom is not supported"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, r"rope scaling 'yarn' is not supported"),
    ({"quantization_config": {"quant_method": "gptq"}}, r"quantised with 'gptq' are not supported; use an AWQ version"),
    ({"hidden_act": "gelu"}, r"hidden_act='gelu' is not supported"),
    ({"mlp_bias": True}, r"mlp_bias=True is not supported"),
    ({"hidden_size": None}, r"config.json: hidden_size is None"),
    ({"hidden_size": "256"}, r"config.json: hidden_size is '256'"),
    ({"architectures": [1]}, r"config.json: architectures is \[1\], but has to be a list of names"),
    ({"quantization_config": True}, r"config.json: quantization_config is True"),
    ({"num_key_value_heads": "2"}, r"config.json: num_key_value_heads is '2'"),
    ({"head_dim": -64}, r"config.json: head_dim is -64"),
    ({"rms_norm_eps": "small"}, r"config.json: rms_norm_eps is 'small', but has to be a number"),
    ({"eos_token_id": [[2]]}, r"config.json: eos_token_id is \[\[2\]\], but has to be an id"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": "two"}}, r"config.json: factor is 'two'"),
    ({"rope_parameters": {"rope_type": ["a"]}}, r"rope scaling .* is not supported"),
])
def test_what_is_not_supported_is_refused_by_name(llama, changes, message):
    rewrite_json(llama / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        canonicalise(open_hf(llama), "llama")


@pytest.mark.parametrize("config, expected", [
    ({}, RopeConfig(64)),
    ({"rope_theta": 1e6, "rope_scaling": None}, RopeConfig(64, 1e6)),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, RopeConfig(64, 1e4, "linear", 4.0)),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6},
     RopeConfig(64, 1e6, "dynamic", 2.0, original_max_position_embeddings=512)),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}},
     RopeConfig(64, 5e5, "dynamic", 2.0, original_max_position_embeddings=512)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(64, 5e5)),
    ({"rotary": {"type": "origin", "base": 20000}}, RopeConfig(64, 2e4)),
    ({"rotary": {"type": "dynamic", "base": 10000, "scaling_factor": 2.0}},
     RopeConfig(64, 1e4, "dynamic", 2.0, original_max_position_embeddings=512)),
])
def test_every_spelling_of_rope_settings_is_read(config, expected):
    assert rope_config(Path("config.json"), config, 64, 512) == expected


@pytest.mark.parametrize("max_window_layers, window", [(1, 64), (2, None)])
def test_qwens_sliding_window_counts_where_a_layer_uses_it(tmp_path, max_window_layers, window):
    make_checkpoint("qwen2", tmp_path)
    rewrite_json(tmp_path / "config.json", use_sliding_window=True, sliding_window=64,
                 max_window_layers=max_window_layers)
    assert canonicalise(open_hf(tmp_path), "qwen2").model.sliding_window == window


def rewrite_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def add_tensor(folder: Path, name: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    save_file({name: torch.ones(32)}, folder / "extra.safetensors")
    index["weight_map"][name] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
