"""Windows: drawn at random but always the same, without repeats, and a line where the text is too short."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from backend.errors import ConfigError
from backend.text.tokenizer import Tokenizer
from converter import calibration_windows
from converter.calibration_windows import Calibration
from converter.source import HuggingFaceSource, open_checkpoint

LETTERS = "".join(f"{number:05d}" for number in range(2000))  # 10,000 tokens, one a byte


@pytest.fixture
def source(pristine_llama, tmp_path, monkeypatch) -> HuggingFaceSource:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return open_checkpoint(pristine_llama, "llama2")


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text(LETTERS)
    return str(tmp_path / "text.txt")


def test_windows_are_runs_of_the_text_without_repeats(source, text):
    found = Calibration(text, samples=20, seqlen=100).draw(source)
    assert found.drawn.shape == (20, 100) and found.drawn.dtype == torch.int64
    decoded = [source_text(source, window) for window in (*found.drawn, *found.left)]
    assert len(set(decoded)) == len(decoded) == 100
    assert all(window in LETTERS for window in decoded)
    assert decoded[:20] != sorted(decoded)[:20]


def source_text(source: HuggingFaceSource, window: torch.Tensor) -> str:
    return Tokenizer(source.tokenizer_dir).decode(window.tolist())


def test_the_same_windows_are_drawn_again(source, text):
    first, second = (Calibration(text, 5, 64).draw(source) for _ in range(2))
    assert torch.equal(first.drawn, second.drawn) and torch.equal(first.left, second.left)


@pytest.mark.parametrize(("samples", "seqlen", "cure"), [
    (128, 2048, "--calib_samples 4,"), (1, 20_000, r"--calib_samples 1 --calib_seqlen 10,?000,")])
def test_a_text_that_is_too_short_names_its_tokens_and_what_would_work(samples, seqlen, cure, source, text):
    with pytest.raises(ConfigError, match=rf"has 10,000 tokens, but {samples} samples of {seqlen} need .*; use {cure}"):
        Calibration(text, samples, seqlen).draw(source)


def test_a_text_of_a_few_letters_has_no_cure_but_a_longer_one(source, tmp_path):
    (tmp_path / "short.txt").write_text("Hello")
    with pytest.raises(ConfigError, match=r"has 5 tokens, .*; give a longer text"):
        Calibration(str(tmp_path / "short.txt"), 1, 16).draw(source)


def test_of_the_built_in_text_what_there_is_is_taken_and_said(source, caplog):
    with caplog.at_level(logging.WARNING):
        found = Calibration(samples=128, seqlen=2048).draw(source)
    assert len(found.drawn) > 5 and found.drawn.shape[1] == 2048 and len(found.left) > 1
    assert f"{len(found.drawn)} windows of 2048 tokens are taken" in caplog.text
    caplog.clear()
    assert Calibration(samples=8, seqlen=64).draw(source).drawn.shape == (8, 64)
    assert not caplog.text


def test_windows_longer_than_the_built_in_text_leave_half_of_it_for_measuring(source):
    found = Calibration(samples=1, seqlen=10**6).draw(source)
    assert found.drawn.shape == found.left.shape


def test_loss_is_measured_on_other_windows_where_there_are_some(source, text, monkeypatch):
    monkeypatch.setattr(calibration_windows, "EVALUATION_TOKENS", 250)
    evaluation = Calibration(text, 20, 100).draw(source).evaluation_text()
    assert evaluation.name == f"{text}, other windows" and len(evaluation.windows) == 2
    assert Calibration(text, 100, 100).draw(source).evaluation_text().name == f"{text}, the same windows"


def test_conversations_are_rendered_as_the_model_reads_them(source, tmp_path):
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    found = Calibration(str(tmp_path / "chat.jsonl"), 1, 16).draw(source)
    assert "[/INST] Hi" in source_text(source, found.drawn[0])


def test_a_conversation_that_the_template_refuses_names_the_file(source, tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"from": "human", "value": "Hello"}]}))
    with pytest.raises(ConfigError, match=rf"{file} has a conversation .* refuses: messages\[0\].role is None"):
        Calibration(str(file), 1, 16).draw(source)


def test_conversations_are_plain_text_to_a_model_without_a_template(pristine_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_checkpoint(pristine_llama, None)
    nameless = dataclasses.replace(source, model=dataclasses.replace(source.model, model_name="a base model"))
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    found = Calibration(str(tmp_path / "chat.jsonl"), 1, 15).draw(nameless)
    assert source_text(nameless, found.drawn[0]) == "Hello\n\nHi there"
