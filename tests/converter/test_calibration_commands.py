"""The commands auto_awq and kv_qparams: both spellings of a flag, booleans that mean what they say, one-line errors."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backend.workspace import WEIGHTS
from converter import auto_awq, kv_calibration, kv_qparams, quantise_checkpoint
from converter.awq_layer import Recipe
from converter.calibration_windows import Calibration

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def keep_signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run_command(module: Any, *arguments: object) -> tuple[int | None, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            module.main()
        return exit_.value.code, *capsys.readouterr()

    return run_command


@pytest.fixture
def called(monkeypatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What either command asks for, which is then not done."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*given: Any, **named: Any) -> Path:
        calls.append((given, named))
        return Path("file")

    monkeypatch.setattr(quantise_checkpoint, "quantise_checkpoint", note)
    monkeypatch.setattr(kv_calibration, "calibrate_kv", note)
    return calls


@pytest.mark.parametrize("dash", ["-", "_"])
def test_auto_awq_takes_either_spelling_of_its_flags(dash, run, called):
    flags = {"work-dir": "out", "calib-dataset": "ptb", "calib-samples": 5, "calib-seqlen": 64, "w-bits": 4,
             "w-group-size": 32, "batch-size": 2, "search-scale": "False"}
    arguments = [text for flag, value in flags.items() for text in (f"--{flag.replace('-', dash)}", value)]
    code, _, error = run(auto_awq, "model", *arguments)
    assert not code, error
    assert called == [((Path("model"), Path("out"), Recipe(32, is_searched=False), Calibration("ptb", 5, 64)),
                       {"batch_size": 2, "device": "auto", "show_progress": True})]


@pytest.mark.parametrize(("text", "value"), [("True", True), ("1", True), ("yes", True), ("False", False),
                                             ("0", False), ("no", False)])
def test_booleans_mean_what_they_say(text, value, run, called):
    run(auto_awq, "model", "--work-dir", "out", "--search-scale", text)
    run(kv_qparams, "--model", "m", "--output_dir", "o", "--symmetry", text, "--offload", text)
    assert called[0][0][2].is_searched is value
    assert called[1][1]["is_symmetric"] is value and called[1][1]["offload"] is value


def test_defaults_are_those_of_lmdeploy_but_for_the_better_choices(run, called):
    run(auto_awq, "model", "--work-dir", "out")
    run(kv_qparams, "--model", "m", "--output_dir", "o")
    assert called[0][0][2:] == (Recipe(128, is_searched=True), Calibration(None, 128, 2048))
    assert called[1] == ((Path("m"), Path("o"), Calibration(None, 128, 2048)), {
        "is_symmetric": False, "offload": False, "num_tp": 1, "device": "auto", "show_progress": True})


def test_other_bit_widths_are_refused_in_words(run, called):
    code, _, error = run(auto_awq, "model", "--work-dir", "out", "--w-bits", 8)
    assert code == 1 and error == "error: --w-bits 8 is not supported; use 4\n" and not called


def test_other_group_sizes_are_refused_with_those_that_there_are(run, called):
    code, _, error = run(auto_awq, "model", "--work-dir", "out", "--w-group-size", 256)
    assert code == 2 and "'32', '64', '128'" in error and not called


def test_both_commands_do_their_work(pristine_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    awq, workspace = tmp_path / "awq", tmp_path / "workspace"
    calibration = ("--calib-samples", 2, "--calib-seqlen", 32, "--device", "cpu")
    done = command("converter.auto_awq", pristine_llama, "--work-dir", awq, "--w-group-size", 64, *calibration)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{awq}: quantised\n") and "perplexity" in done.stderr
    done = command("converter", "llama", awq, "awq", "--dst_path", workspace)
    assert done.returncode == 0, done.stderr
    done = command("converter.kv_qparams", "--model", pristine_llama, "--output_dir", workspace / WEIGHTS, *calibration)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{workspace / WEIGHTS}/past_kv_scale.safetensors: written\n")
    assert "KV cache int8 (calibrated)" in done.stderr and "set quant_policy = 4" in done.stdout


def test_scales_outside_of_a_workspace_come_with_the_way_to_where_they_are_read(run, called):
    code, output, _ = run(kv_qparams, "--model", "m", "--output_dir", "o")
    assert not code and "a workspace's triton_models/weights as --output_dir" in output
    assert "quant_policy" not in output


def test_a_missing_model_is_one_line(run, tmp_path):
    for module, arguments in ((auto_awq, [tmp_path / "no", "--work-dir", tmp_path / "out"]),
                              (kv_qparams, ["--model", tmp_path / "no", "--output_dir", tmp_path / "out"])):
        code, _, error = run(module, *arguments)
        assert code == 1 and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
