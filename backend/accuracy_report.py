"""Accuracy report: what quantising a model has cost, measured once and stored beside its weights.

`accuracy.json` holds one report per format. Written by converter (auto_awq, kv_qparams), carried along by `convert`,
read at load by the worker, which warns where the loss is past a bound. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import CheckpointError
from backend.kv_format import KvFormat
from backend.workspace import WEIGHTS

ACCURACY_FILE = "accuracy.json"
# AWQ W4A16 of a 7B model costs 1 to 3 % of perplexity, int8 KV less than 0.3 %: past this, something went wrong, or the
# model cannot bear the format. The divergence shows a loss too where the model cannot predict the text anyway.
MAX_PERPLEXITY_INCREASE = 0.05
MAX_KL_DIVERGENCE = 0.1
PLAIN_KV = KvFormat.AS_MODEL.value  # AccuracyReport.kv of a cache that is not quantised


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """A format of a model against the same model as it was before, on the same tokens.

    weights, kv      how each is stored, in words
    base             what it is compared with, in words: unquantised, but where KV was calibrated on 4-bit weights
    text             name of the text;  num_tokens  of it that were predicted, each from all those before it
    base_perplexity, perplexity   exp of the mean negative log-likelihood of the text's own next tokens
    kl_divergence    mean over tokens of KL(base's distribution || this one's), nats
    top1_agreement   share of tokens at which both think the same next token likeliest
    date             YYYY-MM-DD;  versions  of Python and torch"""

    model_name: str
    weights: str
    kv: str
    base: str
    text: str
    num_tokens: int
    base_perplexity: float
    perplexity: float
    kl_divergence: float
    top1_agreement: float
    date: str
    versions: dict[str, str]

    @property
    def perplexity_increase(self) -> float:
        """0.01 is one per cent worse than the base; below zero is better."""
        return self.perplexity / self.base_perplexity - 1

    @property
    def is_past_bound(self) -> bool:
        return self.perplexity_increase > MAX_PERPLEXITY_INCREASE or self.kl_divergence > MAX_KL_DIVERGENCE

    def short(self) -> str:
        """The report in a line."""
        return (f"weights {self.weights}, KV cache {self.kv}: perplexity {self.base_perplexity:.4g} → "
                f"{self.perplexity:.4g} ({self.perplexity_increase:+.2%}), KL divergence {self.kl_divergence:.2g}, "
                f"same likeliest token {self.top1_agreement:.2%} (against {self.base}; {self.text}, "
                f"{self.num_tokens:,} tokens)")


def store_report(folder: Path, report: AccuracyReport) -> None:
    """Writes the report into the folder of the weights, in the place of an earlier one of the same format."""
    kept = [other for other in read_reports(folder) if (other.weights, other.kv) != (report.weights, report.kv)]
    _write(folder, [*kept, report])


def drop_reports(folder: Path, kv: str) -> None:
    """Removes what is stored of a KV format, whatever the weights: called before its scales become others."""
    reports = read_reports(folder)
    kept = [report for report in reports if report.kv != kv]
    if len(kept) < len(reports):
        _write(folder, kept)


def read_reports(folder: Path) -> list[AccuracyReport]:
    """The reports stored in a folder of weights, none where there is no file. Raises CheckpointError."""
    file = folder / ACCURACY_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return [_report(values) for values in document["reports"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is no accuracy report ({error}); delete it, or measure again") from None


def loss_warnings(model_path: Path, kv: str) -> list[str]:
    """What the user of a workspace or of a checkpoint's folder should know before it serves with this KV format: each
    stored loss that is past the bound, in a line that names the cure.

    A report of weights alone concerns every KV format, since theirs adds to its loss."""
    weights_dir = model_path / WEIGHTS
    folder = weights_dir if weights_dir.is_dir() else model_path
    try:
        reports = read_reports(folder)
    except CheckpointError as error:  # the model itself may be as good as ever
        return [str(error)]
    return [f"{folder / ACCURACY_FILE}: perplexity is {report.perplexity_increase:+.1%} against {report.base}, "
            f"KL divergence {report.kl_divergence:.2g}, past the bounds of {MAX_PERPLEXITY_INCREASE:+.0%} and "
            f"{MAX_KL_DIVERGENCE}; {_cure(report)} ({report.short()})"
            for report in reports if report.kv in (PLAIN_KV, kv) and report.is_past_bound]


def _write(folder: Path, reports: list[AccuracyReport]) -> None:
    """All at once; no reports, no file."""
    file, partial = folder / ACCURACY_FILE, folder / f".{ACCURACY_FILE}.partial"
    document = {"reports": [dataclasses.asdict(report) for report in reports]}
    try:
        if not reports:
            file.unlink()
            return
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{file} cannot be written: {error.strerror}; make room or choose another folder"
                              ) from None


def _cure(report: AccuracyReport) -> str:
    if report.kv == PLAIN_KV:
        return "quantise in smaller groups or with more calibration text, or use the unquantised model"
    return "use another quant_policy, or calibrate with more text"


def _report(values: dict[str, Any]) -> AccuracyReport:
    report = AccuracyReport(**values)
    figures = (report.base_perplexity, report.perplexity, report.kl_divergence, report.top1_agreement)
    are_numbers = all(isinstance(figure, (int, float)) and math.isfinite(figure) for figure in figures)
    if not are_numbers or min(report.base_perplexity, report.perplexity) <= 0:
        raise ValueError(f"its figures are {figures}")
    words = report.weights, report.kv, report.base, report.text
    if not isinstance(report.num_tokens, int) or not all(isinstance(word, str) for word in words):
        raise ValueError("its number of tokens or a name is of another kind")
    return report
