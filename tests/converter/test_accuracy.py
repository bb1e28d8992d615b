"""Perplexity, divergence and agreement of one model against another, as computed by hand from their logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.accuracy_report import read_reports, store_report
from backend.errors import CheckpointError, ConfigError
from backend.model_source import open_model
from backend.workspace import WEIGHTS
from converter import accuracy
from converter.accuracy import EvaluationText, evaluation_text, measure_accuracy, measure_baseline
from converter.convert import convert_checkpoint
from demo.chat_format import CHECKPOINT
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import TinySource, tiny_source
from tests.checkpoints import make_checkpoint

TOLERANCE = 1e-4
BLOCK_SIZE = 16


def windows(*lengths: int) -> EvaluationText:
    generator = torch.Generator().manual_seed(3)
    return EvaluationText("noise", tuple(tuple(torch.randint(3, 96, (length,), generator=generator).tolist())
                                         for length in lengths))


def log_probs(source: TinySource, window: tuple[int, ...]) -> Tensor:
    """[len(window) - 1, V], each prompt computed on its own."""
    driver = StepDriver(source)
    rows = [driver.logits([(0, 0, length)], [driver.setup(0, window[:length])])[0] for length in range(1, len(window))]
    return torch.stack(rows).double().log_softmax(-1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows take several steps, steps several windows, and logits several slices."""
    monkeypatch.setattr(accuracy, "CHUNK_TOKENS", 8)
    monkeypatch.setattr(accuracy, "WINDOWS_PER_STEP", 3)
    monkeypatch.setattr(accuracy, "LOGITS_BYTES", 5 * 4 * 96)


def test_figures_are_those_of_the_whole_logits() -> None:
    base, other = tiny_source(seed=0), tiny_source(seed=1)
    text = windows(25, 18, 2, 10, 17)  # 25 and 17 end in a chunk of a full step, 18 and 10 in one token
    report = measure_accuracy(base, other, other.engine, text)
    loss = base_loss = divergence = same = 0.0
    for window in text.windows:
        ours, theirs = log_probs(other, window), log_probs(base, window)
        wanted = torch.tensor(window[1:])[:, None]
        loss -= float(ours.gather(1, wanted).sum())
        base_loss -= float(theirs.gather(1, wanted).sum())
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
    count = sum(len(window) - 1 for window in text.windows)
    assert report.num_tokens == count
    expected = torch.tensor([base_loss / count, loss / count, divergence / count, same / count])
    found = torch.tensor([report.base_perplexity, report.perplexity, report.kl_divergence, report.top1_agreement])
    expected[:2].exp_()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_model_against_itself_loses_nothing() -> None:
    source = tiny_source()
    report = measure_accuracy(source, source, source.engine, windows(20, 9))
    assert (report.kl_divergence, report.top1_agreement, report.perplexity_increase) == (0.0, 1.0, 0.0)


def test_one_baseline_serves_several_formats() -> None:
    source = tiny_source()
    baseline = measure_baseline(source, source.engine, windows(20, 9))
    rounded = baseline.compare(source, source.engine.with_options({"dtype": "bfloat16"}))
    exact = baseline.compare(source, source.engine)
    assert exact.kl_divergence == 0.0 < rounded.kl_divergence < 0.1
    assert exact.base_perplexity == rounded.base_perplexity


def test_coarser_kv_loses_more_and_its_format_is_named() -> None:
    source = tiny_source()
    baseline = measure_baseline(source, source.engine, windows(40, 25))
    int8, int4 = (baseline.compare(source, source.engine.with_options({"quant_policy": policy})) for policy in (8, 4))
    assert 0.0 < int8.kl_divergence < int4.kl_divergence
    assert (int8.kv, int4.kv) == ("int8 (online)", "int4 (online)")


def test_another_model_is_refused() -> None:
    source = tiny_source()
    with pytest.raises(ConfigError, match=r"a vocabulary of 97, .* one of 96"):
        measure_accuracy(source, tiny_source(vocab_size=97), source.engine, windows(9))


def test_progress_counts_every_token_of_both_models() -> None:
    source, text, seen = tiny_source(), windows(20, 9), []
    measure_accuracy(source, source, source.engine, text, seen.append)
    assert sum(seen) == 2 * text.num_tokens


def test_logits_that_are_not_finite_are_an_error_that_names_the_model() -> None:
    class Damaged(TinySource):
        def tensors(self):
            for name, tensor in super().tensors():
                yield name, tensor * (torch.nan if name == "layers.1.attention.wo.weight" else 1.0)

    good = tiny_source()
    bad = Damaged(good.model, good.engine)
    with pytest.raises(CheckpointError, match=r"tiny: logits are not finite; .*make them again"):
        measure_accuracy(good, bad, bad.engine, windows(9))


def test_a_text_is_cut_into_windows_that_begin_with_the_start_token() -> None:
    source = open_model(CHECKPOINT, "internlm2")
    text = evaluation_text("counting", " ".join(map(str, range(200))), source, window_tokens=64, max_tokens=150)
    assert [window[0] for window in text.windows] == [source.model.bos_token_id] * 3
    assert [len(window) for window in text.windows] == [64, 64, 25]
    assert text.num_tokens == 150


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(CheckpointError, match="nothing is too short"):
        evaluation_text("nothing", "", open_model(CHECKPOINT, "internlm2"))


def test_a_workspace_carries_the_report_of_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    make_checkpoint("llama", folder)
    source = tiny_source()
    report = measure_accuracy(source, source, source.engine, windows(9))
    store_report(folder, report)
    convert_checkpoint("llama", folder, dst_path=tmp_path / "workspace")
    assert read_reports(tmp_path / "workspace" / WEIGHTS) == [report]
