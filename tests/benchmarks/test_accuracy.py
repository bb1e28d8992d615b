"""The accuracy benchmark: which formats are compared, on what, and how table and picture show them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.errors import ConfigError
from backend.model_source import open_model
from benchmarks import accuracy, accuracy_table, heldout, report
from benchmarks.plot import drawn_points
from benchmarks.record import RESULTS
from benchmarks.results_table import Results
from converter.accuracy import measure_baseline
from converter.convert import convert_checkpoint
from demo.chat_format import CHECKPOINT, ChatFormat
from demo.conversation import read_jsonl
from demo.corpus import HELDOUT_PATH
from tests.awq_checkpoints import make_awq_pair
from tests.checkpoints import make_checkpoint


def measure(*arguments: object) -> str:
    result = CliRunner().invoke(accuracy.main, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog " * 20)
    return file


def test_each_kind_of_weights_meets_each_kind_of_kv_once(tmp_path, text):
    make_checkpoint("llama", tmp_path / "hf")
    convert_checkpoint("llama", tmp_path / "hf", dst_path=tmp_path / "workspace")  # the same weights once more
    file = tmp_path / "result.json"
    output = measure(tmp_path / "hf", tmp_path / "workspace", "--text", text, "--max_tokens", 40, "--device", "cpu",
                     "--json", file)
    document = json.loads(file.read_text())
    assert [row["kv"] for row in document["formats"]] == ["in the model's dtype", "int8 (online)", "int4 (online)"]
    base, int8, int4 = document["formats"]
    assert base["kl_divergence"] == base["perplexity_increase"] == 0 and base["top1_agreement"] == 1
    assert 0 < int8["kl_divergence"] < int4["kl_divergence"]
    assert base["kv_bytes"] > int8["kv_bytes"] > int4["kv_bytes"]
    assert document["num_tokens"] == 40 and document["text"].endswith("text.txt") and document["device"]
    said, *table = output.splitlines()
    assert len(table) == 4 and base["skills"] == {}
    assert re.search(r"workspace has the weights of .*hf; not measured again with KV in the model's dtype, int8", said)


def test_another_model_that_is_not_quantised_has_its_rows(tmp_path, text):
    for seed, name in enumerate(("one", "two")):
        make_checkpoint("llama", tmp_path / name, seed=seed)
    file = tmp_path / "result.json"
    output = measure(tmp_path / "one", tmp_path / "two", tmp_path / "one", "--text", text, "--max_tokens", 40,
                     "--device", "cpu", "--quant_policy", 0, "--json", file)
    one, two = json.loads(file.read_text())["formats"]
    assert (one["model"], two["model"]) == ("one", "two") and one["kl_divergence"] == 0 < two["kl_divergence"]
    assert len(output.splitlines()) == 3  # nothing is left out


def test_quantised_weights_are_compared_with_the_model_that_is_named(tmp_path, text):
    quantised, dense = make_awq_pair("llama", tmp_path, 32)
    with pytest.raises(ConfigError, match=r"are quantised; name the model as it was with --against"):
        measure(quantised, "--text", text)
    file = tmp_path / "result.json"
    measure(quantised, "--against", dense, "--text", text, "--max_tokens", 40, "--device", "cpu", "--quant_policy", 0,
            "--json", file)
    base, four_bits = json.loads(file.read_text())["formats"]
    assert four_bits["weights"].startswith("int4, groups of 32") and base["weights"] == "float32"
    assert four_bits["kl_divergence"] < 1e-5  # the twin holds what the words stand for


def test_held_out_conversations_are_windows_of_their_own():
    conversations, chat_format = read_jsonl(HELDOUT_PATH), ChatFormat()
    text = heldout.heldout_text()
    assert len(text.windows) == len(conversations) == 600
    assert chat_format.decode(text.windows[7]) == chat_format.render(conversations[7].messages, conversations[7].tools)


def test_the_demo_model_is_known_by_its_sizes(tmp_path):
    make_checkpoint("llama", tmp_path)
    assert heldout.is_demo(open_model(CHECKPOINT).model)
    assert not heldout.is_demo(open_model(tmp_path).model)


def test_the_demo_model_s_answers_are_judged_per_skill():
    source = open_model(CHECKPOINT)
    found = heldout.skills(source, source.engine.with_options({"device": "cpu"}), limit=12)
    assert found["all"]["count"] == 12 and found["all"]["correct"] > 0.9
    assert sum(row["count"] for name, row in found.items() if name != "all") == 12
    assert found["recall"]["count"] >= 2 and not any(name.startswith("recall,") for name in found)


@pytest.fixture(scope="module")
def drawn():
    return report.drawn_accuracy(Results.read(RESULTS))


def test_the_picture_shows_the_measured_formats(drawn):
    assert drawn_points(report.ACCURACY_PICTURE.read_text(encoding="utf-8")) == accuracy_table.points(drawn)


def test_what_is_drawn_is_what_was_measured(drawn, tmp_path):
    pytest.importorskip("matplotlib")
    accuracy_table.draw(drawn, tmp_path / "again.svg")
    assert drawn_points((tmp_path / "again.svg").read_text(encoding="utf-8")) == accuracy_table.points(drawn)


# Perplexity against the unquantised model's, and how much of tool calls and recall int8 may lose.
BARS = {("bfloat16", "int8 (online)"): 0.003, ("bfloat16", "int8 (calibrated)"): 0.003,
        ("bfloat16", "int4 (online)"): 0.02, ("int4", "in the model's dtype"): 0.03}
SKILL_BAR = 0.01


def test_online_kv_keeps_the_demo_model_within_its_bars():
    source = open_model(CHECKPOINT)
    engine = source.engine.with_options({"device": "cpu", "dtype": "float32"})
    baseline = measure_baseline(source, engine, heldout.heldout_text(limit=40))
    for policy in (8, 4):
        found = baseline.compare(source, engine.with_options({"quant_policy": policy}))
        assert found.perplexity_increase < BARS[found.weights, found.kv]


def test_what_was_measured_of_the_demo_model_is_within_its_bars(drawn):
    rows = {(row["weights"].partition(",")[0], row["kv"]): row for row in drawn["formats"]}
    base = rows["bfloat16", "in the model's dtype"]["skills"]
    for (weights, kv), bar in BARS.items():
        row = rows[weights, kv]
        assert row["perplexity_increase"] < bar
        if "int8" in kv:
            for skill in ("tool call", "recall"):
                assert row["skills"][skill]["correct"] >= base[skill]["correct"] - SKILL_BAR
