"""What fits on a card: every choice that saves memory, in the words of a user with one card."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.config import EngineConfig, render_config
from backend.errors import MillraceError
from backend.memory_plan import GIB, plan_memory
from backend.model_outline import KNOWN_MODELS
from backend.plan import card_table, free_bytes, main, plans
from backend.workspace import PAST_KV_SCALE, WEIGHTS

MODEL = KNOWN_MODELS["internlm2.5-7b"]
ENGINE = EngineConfig(session_len=8192)


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, titles left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_choice_has_its_row() -> None:
    choices = [row[:3] for row in rows(card_table(MODEL, ENGINE, 24))]
    assert choices == [[weights, kv, share] for weights in ("bf16", "W4A16") for kv in ("bf16", "int8", "int4")
                       for share in ("0.8", "0.4")]


def test_a_row_is_the_plan_of_the_engine() -> None:
    plan = plan_memory(MODEL, ENGINE.with_options({"cache_max_entry_count": 0.4}), "bfloat16", free_bytes(80))
    gib = [f"{num_bytes / GIB:.1f}" for num_bytes in (plan.weights_bytes, plan.kv_bytes, plan.other_bytes)]
    assert rows(card_table(MODEL, ENGINE, 80))[1] == [
        "bf16", "bf16", "0.4", *gib, f"{plan.num_tokens:,}", f"{plan.num_tokens // 8192} conversations of 8,192"]


def test_each_saving_makes_room() -> None:
    tokens = {choice: plan.num_tokens for choice, plan in plans(MODEL, ENGINE, free_bytes(24))}
    bf16, int8, int4 = (tokens["bf16", kv, 0.8] for kv in ("bf16", "int8", "int4"))
    assert 1.8 * bf16 < int8 < 2 * bf16
    assert 3.3 * bf16 < int4 < 4 * bf16
    assert tokens["W4A16", "bf16", 0.8] > bf16 + 9 * GIB * 0.8 / 131_072  # the weights' 9 GiB, 128 KiB of KV a token


def test_what_does_not_fit_says_what_would() -> None:
    found = rows(card_table(MODEL, ENGINE, 16))
    assert found[0][3:7] == ["–"] * 4
    assert re.match(r"does not fit: weights need 14\.4 GiB .* use tp=2", found[0][-1])
    assert found[-1][-1].endswith("conversations of 8,192")


def test_a_card_has_a_little_less_than_it_is_sold_as() -> None:
    assert 22.5 * GIB < free_bytes(24) < 23.6 * GIB  # an RTX 4090 shows 23.6 GiB before anything runs
    assert 76 * GIB < free_bytes(80) < 79.1 * GIB  # an A100, 79.1 GiB


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_prints_a_table_for_each_card() -> None:
    output = run("internlm2.5-7b", "--gpu-memory", "24", "--gpu_memory", "80")
    assert "a card of 24 GB" in output and "a card of 80 GB" in output
    assert len(re.findall("^[|] bf16 .* conversations of 8,192 [|]$", output, re.MULTILINE)) == 12


@pytest.mark.parametrize(("has_scales", "kv"), [(False, "int4"), (True, "int8, calibrated")])
def test_policy_4_is_what_it_means_in_the_workspace(has_scales: bool, kv: str, tmp_path: Path) -> None:
    weights = tmp_path / WEIGHTS
    weights.mkdir(parents=True)
    model = dataclasses.replace(MODEL, bos_token_id=1, eos_token_ids=(2,))
    (weights / "config.ini").write_text(render_config(model, ENGINE))
    if has_scales:
        (tmp_path / PAST_KV_SCALE).touch()
    found = rows(run(str(tmp_path), "--gpu-memory", "80"))[4]
    plan = plan_memory(MODEL, ENGINE.with_options({"quant_policy": 4, "cache_max_entry_count": 0.8}), "bfloat16",
                       free_bytes(80), has_kv_scales=has_scales)
    assert found[1] == kv and found[6] == f"{plan.num_tokens:,}"


def test_options_count() -> None:
    output = run("internlm2.5-7b", "--gpu-memory", "16", "--tp", "2", "--session_len", "4096", "--max_batch_size", "8")
    assert "each of 2 cards of 16 GB" in output
    assert "Conversations of 4,096 tokens, at most 8 at a time." in output
    assert rows(output)[0][3] == "7.2" and rows(output)[0][-1].endswith("conversations of 4,096")


def test_where_no_group_size_fits_the_row_of_four_bits_says_so() -> None:
    odd = dataclasses.replace(MODEL, intermediate_size=14340)
    found = rows(card_table(odd, ENGINE, 80))
    assert "group_size=32 does not divide" in found[-1][-1]
    assert found[0][-1].endswith("conversations of 8,192")


@pytest.mark.parametrize("size", ["nan", "inf", "0", "many"])
def test_a_size_that_no_card_has_is_refused_by_name(size: str) -> None:
    result = CliRunner().invoke(main, ["internlm2.5-7b", "--gpu-memory", size])
    assert result.exit_code == 2 and "Invalid value for '--gpu_memory'" in result.output


@pytest.mark.parametrize("arguments", [("no-such-model",), ("internlm2.5-7b", "--tp", "3")])
def test_bad_input_is_an_error_of_ours(arguments: tuple[str, ...]) -> None:


    with pytest.raises(MillraceError):
        CliRunner().invoke(main, arguments, catch_exceptions=False, standalone_mode=False)
