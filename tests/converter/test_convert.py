"""The whole conversion, from Python and from the command line: what comes out, and what stays when it fails."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from safetensors.torch import load_file, save_file
from tritonclient.grpc import model_config_pb2

from backend.errors import ConfigError
from backend.workspace import WEIGHTS, Workspace, weight_files
from converter.__main__ import main
from converter.canonical import canonicalise
from converter.checkpoint import open_hf
from converter.convert import convert_checkpoint
from tests.checkpoints import FAMILIES, make_checkpoint, make_meta_checkpoint, write_tokenizer


@pytest.fixture
def run_convert(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, *capsys.readouterr()

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("family", FAMILIES)
def test_workspace_of_a_family_holds_its_model_and_canonical_tensors(family, tmp_path):
    make_checkpoint(family, tmp_path / "hf", dtype=torch.bfloat16)
    conversion = convert_checkpoint("llama", tmp_path / "hf", dst_path=tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    assert workspace.model == conversion.model
    assert workspace.engine == conversion.engine
    expected = canonicalise(open_hf(tmp_path / "hf"), "llama").tensors
    written = dict(workspace.tensors())
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name][:], tensor[:]) for name, tensor in expected.items())
    assert conversion.num_bytes == sum(tensor.num_bytes for tensor in expected.values())


def test_clients_can_ask_turbomind_s_configuration_for_the_model_s_name(pristine_llama, tmp_path):
    convert_checkpoint('llama2 "mine"', pristine_llama, dst_path=tmp_path / "workspace")
    file = tmp_path / "workspace" / "model_repository" / "turbomind" / "config.pbtxt"
    config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert config.parameters["model_name"].string_value == 'llama2 "mine"'


def test_each_layer_is_one_file(pristine_llama, tmp_path):
    convert_checkpoint("llama", pristine_llama, dst_path=tmp_path / "workspace")
    files = {file.name for file in (tmp_path / "workspace" / WEIGHTS).iterdir()}
    assert files == {"config.ini", *weight_files(2)}
    assert load_file(tmp_path / "workspace" / WEIGHTS / "output.safetensors").keys() == {"norm.weight", "output.weight"}


def test_meta_checkpoint_gives_the_workspace_of_the_same_weights(tmp_path):
    model = make_checkpoint("llama", tmp_path / "hf")
    make_meta_checkpoint(tmp_path / "meta" / "7B", model)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # Meta's downloads keep the tokenizer beside the model
        (tmp_path / "meta" / "7B" / name).rename(tmp_path / "meta" / name)
    convert_checkpoint("llama", tmp_path / "hf", dst_path=tmp_path / "from_hf")
    conversion = convert_checkpoint("llama", tmp_path / "meta" / "7B", "llama", tmp_path / "from_meta")
    assert (conversion.model.bos_token_id, conversion.model.eos_token_ids) == (1, (2,))
    for name in weight_files(2):
        assert (tmp_path / "from_hf" / WEIGHTS / name).read_bytes() == (
            tmp_path / "from_meta" / WEIGHTS / name).read_bytes()


def test_options_end_up_in_the_configuration(run_convert, pristine_llama, tmp_path):
    code, out, err = run_convert("vicuna", pristine_llama, "hf", "--dst-path", tmp_path / "workspace", "--tp", 2,
                                 "--dtype", "fp16", "--session-len", 99, "--use_context_fmha", 0)
    assert (code, err) == (None, "")
    workspace = Workspace(tmp_path / "workspace")
    assert (workspace.model.model_name, workspace.model.dtype) == ("vicuna", "float16")
    assert (workspace.engine.tp, workspace.engine.session_len, workspace.engine.use_context_fmha) == (2, 99, False)
    assert all(tensor[:].dtype == torch.float16 for _, tensor in workspace.tensors())
    assert f"next: python -m backend.chat vicuna {tmp_path / 'workspace'}" in out


def test_the_next_command_works_when_pasted(run_convert, pristine_llama, tmp_path):
    _, out, _ = run_convert("llama 2", pristine_llama, "--dst_path", tmp_path / "my workspace")
    assert f"next: python -m backend.chat 'llama 2' '{tmp_path}/my workspace'" in out


@pytest.mark.parametrize("spelling", ["fp16", "float16"])
def test_a_dtype_may_be_spelt_either_way(run_convert, pristine_llama, tmp_path, spelling):
    run_convert("llama", pristine_llama, "--dst_path", tmp_path / "workspace", "--dtype", spelling)
    assert Workspace(tmp_path / "workspace").model.dtype == "float16"


def test_a_misspelt_name_is_noticed_though_the_checkpoint_brings_its_template(llama, tmp_path, caplog):
    file = llama / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"chat_template": "{{ messages[0].content }}"}
    file.write_text(json.dumps(settings))
    convert_checkpoint("internml2", llama, dst_path=tmp_path / "workspace")
    assert len(caplog.messages) == 1
    assert "'internml2'; did you mean 'internlm2'?" in caplog.text and "the checkpoint brings its own" in caplog.text


@pytest.mark.parametrize(("model_path", "cure"), [
    ("internlm/internlm2-chat-7b", "download the checkpoint first: hf download internlm/internlm2-chat-7b"),
    ("./models/internlm2", "give the folder of a downloaded checkpoint"),
    ("/models/internlm2", "give the folder of a downloaded checkpoint"),
    ("internlm2", "give the folder of a downloaded checkpoint"),
])
def test_a_download_is_advised_only_for_what_a_hub_could_have(run_convert, tmp_path, monkeypatch, model_path, cure):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    code, _, err = run_convert("internlm2", model_path)
    assert code == 1 and cure in err


def test_an_empty_name_is_refused(run_convert, pristine_llama, tmp_path):
    code, _, err = run_convert("", pristine_llama, "--dst_path", tmp_path / "workspace")
    assert (code, err) == (1, "error: MODEL_NAME is empty; give the model's name, like internlm2-chat-7b\n")


def test_a_sliding_window_bounds_the_session(tmp_path):
    make_checkpoint("mistral", tmp_path / "hf")
    assert convert_checkpoint("mistral", tmp_path / "hf", dst_path=tmp_path / "w").engine.session_len == 256
    with pytest.raises(ConfigError, match=r"session_len=257 exceeds the 256 tokens .* window; use session_len=256"):
        convert_checkpoint("mistral", tmp_path / "hf", dst_path=tmp_path / "w", session_len=257)


def poison(folder: Path) -> None:
    shard = min(folder.glob("model-*.safetensors"))
    tensors = load_file(shard)
    tensors["model.layers.0.mlp.up_proj.weight"][5, 7] = float("nan")
    save_file(tensors, shard)


def add_token(folder: Path) -> None:
    write_tokenizer(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = 320
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def truncate(folder: Path) -> None:
    shard = max(folder.glob("model-*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)


@pytest.mark.parametrize("damage, options, message", [
    (poison, [], r".safetensors: tensor model.layers.0.mlp.up_proj.weight holds NaN"),
    (add_token, [], r"tensor model.embed_tokens.weight has 320 rows, but the tokenizer has ids up to 320"),
    (truncate, [], r".safetensors: tensor model."),
    (None, ["awq"], "is no AWQ checkpoint, its weights are not quantised; use the format hf"),
    (None, ["llama"], "has no params.json"),
    (None, ["--tp", "3"], "tp=3 does not divide head_num=4 of llama; use tp in [1, 2]"),
    (None, ["--quant_policy", "3"], "quant_policy=3 is no KV cache format; use 0"),
    (None, ["--tokenizer_path", __file__], "test_convert.py is no tokenizer's file by its name"),
])
def test_bad_input_is_one_line_and_leaves_nothing(run_convert, llama, tmp_path, damage, options, message):
    if damage:
        damage(llama)
    before = sorted(tmp_path.iterdir())
    code, out, err = run_convert("llama", llama, *options, "--dst_path", tmp_path / "workspace")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_model_name_lists_the_known_ones_and_leaves_nothing(run_convert, llama, tmp_path):
    code, _, err = run_convert("lama", llama, "--dst_path", tmp_path / "workspace")
    assert code == 1
    assert "'lama'" in err
    assert "internlm2" in err
    assert [file.name for file in tmp_path.iterdir()] == ["llama"]


def test_bad_input_leaves_the_old_workspace(run_convert, llama, tmp_path):
    convert_checkpoint("llama", llama, dst_path=tmp_path / "workspace")
    poison(llama)
    assert run_convert("llama", llama, "--dst_path", tmp_path / "workspace")[0] == 1
    assert Workspace(tmp_path / "workspace").model.model_name == "llama"
    assert {file.name for file in tmp_path.iterdir()} == {"llama", "workspace"}


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory) -> tuple[Path, int]:
    """24 layers, and the bytes of one, 34 MB. The weights are a hole in the file: zeros that take no space on disk."""
    folder = tmp_path_factory.mktemp("large") / "hf"
    make_checkpoint("llama", folder, head_dim=128, num_heads=8, num_kv_heads=8, num_layers=1, intermediate_size=4096,
                    dtype=torch.bfloat16)
    return folder, write_sparse_layers(folder, num_layers=24)


_PEAK_GROWTH = """
import sys
from pathlib import Path
from converter.convert import convert_checkpoint

def peak_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = peak_kib()
convert_checkpoint("llama", Path(sys.argv[1]), dst_path=Path(sys.argv[2]))
print((peak_kib() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_layers(large_checkpoint, tmp_path):
    folder, layer_bytes = large_checkpoint
    done = subprocess.run([sys.executable, "-c", _PEAK_GROWTH, folder, tmp_path / "workspace"], check=True,
                          capture_output=True, text=True)
    assert int(done.stdout) < 2 * layer_bytes  # the whole is twelve times that


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_conversion_that_is_stopped_leaves_nothing(large_checkpoint, tmp_path, signal_number):
    process = subprocess.Popen([sys.executable, "-m", "converter", "llama", large_checkpoint[0], "--dst_path",
                                tmp_path / "workspace"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".workspace.partial-*/**/layers.0.safetensors")):
        os.sched_yield()
    process.send_signal(signal_number)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def write_sparse_layers(folder: Path, num_layers: int) -> int:
    """Gives the checkpoint copies of its layer 0, all zero; returns the bytes of one."""
    file = folder / "model.safetensors"
    size = int.from_bytes(file.read_bytes()[:8], "little")
    source = json.loads(file.read_bytes()[8 : 8 + size])
    header, end, layer_bytes = {}, 0, 0
    for layer in range(num_layers):
        for name, entry in source.items():
            is_layer = name.startswith("model.layers.0.")
            if name == "__metadata__" or not (is_layer or layer == 0):
                continue
            num_bytes = entry["data_offsets"][1] - entry["data_offsets"][0]
            header[name.replace(".0.", f".{layer}.")] = {**entry, "data_offsets": [end, end + num_bytes]}
            end += num_bytes
            layer_bytes += num_bytes * (is_layer and layer == 0)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + end)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
    return layer_bytes
