"""What a model is, read without its weights: from a workspace, a folder, a file, or known by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.config import EngineConfig, QuantConfig, render_config
from backend.errors import CheckpointError, WorkspaceError
from backend.memory_plan import weights_bytes
from backend.model_outline import KNOWN_MODELS, read_outline
from backend.workspace import CONFIG
from demo.chat_format import CHECKPOINT
from tests.backend.tiny_model import tiny_source

CONFIG_JSON = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["InternLM2.5-7B", "internlm2_5-7b"])
def test_a_known_model_needs_no_file(name: str) -> None:
    model, engine = read_outline(name)
    assert (model.num_layers, model.num_kv_heads, model.vocab_size, engine) == (32, 8, 92544, None)


@pytest.mark.parametrize(("name", "num_parameters"), [  # of their model cards, in billions
    ("internlm2.5-7b", 7.74), ("internlm2.5-20b", 19.86), ("llama-2-7b", 6.74), ("llama-3.1-8b", 8.03),
    ("qwen2.5-7b", 7.62)])
def test_known_models_have_their_published_sizes(name: str, num_parameters: float) -> None:
    assert weights_bytes(KNOWN_MODELS[name], "bfloat16", 1) / 2e9 == pytest.approx(num_parameters, abs=0.01)


def test_a_workspace_says_how_it_is_run_too(tmp_path: Path) -> None:
    source = tiny_source()
    (tmp_path / CONFIG).parent.mkdir(parents=True)
    (tmp_path / CONFIG).write_text(render_config(source.model, EngineConfig(session_len=77)))
    model, engine = read_outline(str(tmp_path))
    assert (model, engine.session_len) == (source.model, 77)


@pytest.mark.parametrize("is_file", [True, False])
def test_config_json_is_enough_of_a_hugging_face_folder(tmp_path: Path, is_file: bool) -> None:
    file = tmp_path / "demo" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(CONFIG_JSON))
    model, engine = read_outline(str(file if is_file else file.parent))
    assert (model.model_name, model.num_layers, model.dtype, model.quant, engine) == ("demo", 6, "bfloat16", None, None)


def test_quantised_weights_are_known_from_config_json(tmp_path: Path) -> None:
    quantised = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    (tmp_path / "config.json").write_text(json.dumps(
        CONFIG_JSON | {"torch_dtype": "float16", "quantization_config": quantised}))
    model, _ = read_outline(str(tmp_path))
    assert (model.quant, model.dtype) == (QuantConfig(64), "float16")


def test_what_is_no_model_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no-such-model is neither .*internlm2\.5-7b.*; give one of them"):
        read_outline("no-such-model")
    with pytest.raises(CheckpointError, match=r"neither a workspace .* nor a Hugging Face checkpoint"):
        read_outline(str(tmp_path))
    (tmp_path / "notes.txt").write_text("not JSON")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not readable JSON"):
        read_outline(str(tmp_path / "notes.txt"))
