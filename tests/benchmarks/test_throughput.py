"""Throughput's command line: what it refuses, and under which name it keeps what it finds."""

from __future__ import annotations

from contextlib import closing

import pytest
from click.testing import CliRunner

from backend.config import EngineConfig
from backend.errors import ConfigError
from benchmarks.checkpoint import ensure_checkpoint
from benchmarks.runners import MillraceRunner, Settings
from benchmarks.shapes import RandomModel
from benchmarks.throughput import Subject, default_name, main
from tests.benchmarks.tiny import TINY, TINY_AWQ


def test_an_unknown_test_is_named():
    outcome = CliRunner().invoke(main, ["--tests", "a1,a2"])
    assert outcome.exit_code == 1 and "--tests a2 is not known" in outcome.output


@pytest.mark.parametrize("option", ["--quant_policy", "--quant-policy"])
def test_both_spellings_of_an_option_are_one(option):
    outcome = CliRunner().invoke(main, [option, "8", "--tests", "no"])
    assert "--tests no is not known" in outcome.output


@pytest.mark.usefixtures("on_cpu")
def test_the_kv_format_reaches_the_engine():
    with pytest.raises(ConfigError, match="quant_policy=3"):
        MillraceRunner(RandomModel(TINY, EngineConfig(session_len=1)), Settings(64, 2, quant_policy=3))


@pytest.mark.parametrize(("engine", "weights", "policy", "name"), [
    ("millrace", "bf16", 0, "throughput_m7.json"), ("millrace", "awq", 0, "throughput_m7_awq.json"),
    ("vllm", "bf16", 8, "throughput_m7_vllm_kv8.json")])
def test_results_of_different_engines_and_formats_are_different_files(engine, weights, policy, name, tmp_path):
    shape = Subject(engine, "m7", weights, tmp_path, cuda_graphs=True).name
    assert default_name({"engine": engine, "shape": shape, "quant_policy": policy}) == name


def test_weights_of_a_folder_are_its_own():
    outcome = CliRunner().invoke(main, ["--shape", "./folder", "--weights", "awq"])
    assert outcome.exit_code == 1 and "--weights awq is for m7, g8; ./folder has its own" in outcome.output


@pytest.mark.usefixtures("on_cpu")
def test_quantised_weights_run():
    with closing(MillraceRunner(RandomModel(TINY_AWQ, EngineConfig(session_len=1)), Settings(64, 2))) as runner:
        assert runner.generate([(11, 12), (13,)], [3, 2]).num_tokens == [3, 2]


@pytest.mark.usefixtures("on_cpu")
def test_a_folder_can_stand_in_the_place_of_a_shape(tmp_path):
    subject = Subject("millrace", str(ensure_checkpoint(TINY, tmp_path / "tiny")), "bf16", tmp_path, cuda_graphs=True)
    assert subject.source.model.num_layers == TINY.num_layers
    with subject.start(Settings(session_len=64, max_batch_size=2)) as runner:
        assert runner.generate([(11, 12)], [3]).num_tokens == [3]
