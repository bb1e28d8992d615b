"""Accuracy table: what accuracy.py measured, as Markdown and as a picture, and the plans of two cards.

Used by report.py, which writes the tables into docs/quantisation.md and draws docs/accuracy.svg."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.config import EngineConfig
from backend.model_outline import KNOWN_MODELS
from backend.plan import DEFAULT_SESSION_LEN, card_table
from benchmarks.plot import styled_pyplot

Json = dict[str, Any]

PLANNED_MODEL = "internlm2.5-7b"
CARDS_GB = (24, 80)
SKILLS = {"tool call": "tool calls", "recall": "recall", "all": "all questions"}
MIB = 2**20
KV_COLOURS = {"in the model's dtype": "#20242b", "int8 (online)": "#0b62d6", "int8 (calibrated)": "#2a9d4e",
              "int4 (online)": "#e07b00"}
WEIGHT_MARKERS = "osD^v"


def accuracy(documents: Sequence[Json]) -> str:
    """The formats of each model: loss beside memory."""
    parts = []
    for document in documents:
        skills = {skill: name for skill, name in SKILLS.items() if skill in document["formats"][0]["skills"]}
        titles = ["model", "weights", "KV cache", "weights, MiB", f"KV of {document['kv_tokens']:,} tokens, MiB",
                  "perplexity", "change", "KL divergence", "same top token", *skills.values()]
        rows = [[row["model"], row["weights"], row["kv"], f"{row['weights_bytes'] / MIB:.2f}",
                 f"{row['kv_bytes'] / MIB:.2f}", f"{row['perplexity']:.4f}", f"{row['perplexity_increase']:+.2%}",
                 f"{row['kl_divergence']:.1e}", f"{row['top1_agreement']:.2%}",
                 *(f"{row['skills'][skill]['correct']:.1%}" for skill in skills)] for row in document["formats"]]
        alignment = ["---"] * 3 + ["---:"] * (len(titles) - 3)
        lines = [f"| {' | '.join(row)} |" for row in (titles, alignment, *rows)]
        versions = ", ".join(f"{name} {document['versions'][name]}" for name in ("torch", "triton"))
        parts += ["\n".join(lines), f"Against {document['base']}; {document['num_tokens']:,} tokens of "
                  f"{document['text']}. {document['device']}, {versions}, Python {document['python']}, "
                  f"`{document['command']}`, {document['date']}."]
    return "\n\n".join(parts) or "Not measured yet; `python -m benchmarks.accuracy` does."


def plans() -> str:
    """What fits on a card of each size."""
    engine = EngineConfig(DEFAULT_SESSION_LEN)
    return "\n\n".join(card_table(KNOWN_MODELS[PLANNED_MODEL], engine, size) for size in CARDS_GB)


def points(document: Json) -> list[list[Any]]:
    """[weights, KV cache, MiB of weights and KV, KL divergence] of each format; the base has none."""
    return [[row["weights"], row["kv"], round((row["weights_bytes"] + row["kv_bytes"]) / MIB, 3), row["kl_divergence"]]
            for row in document["formats"]]


def draw(document: Json, file: Path) -> None:
    """Loss against memory, one mark a format; a dashed line where the base is, which loses nothing."""
    pyplot = styled_pyplot()
    shown = points(document)
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    markers = dict(zip(dict.fromkeys(point[0] for point in shown), WEIGHT_MARKERS, strict=False))
    for weights, kv, mib, divergence in shown:
        if divergence > 0:
            axes.plot([mib], [divergence], linestyle="", marker=markers[weights], markersize=9, color=KV_COLOURS[kv],
                      label=f"{weights.partition(',')[0]} weights, KV {kv}")
        else:
            axes.axvline(mib, linestyle="--", linewidth=1.2, color="#20242b", label=f"{weights}, not quantised: 0")
    axes.set(yscale="log", ylabel="KL divergence to the unquantised model, nats",
             xlabel=f"MiB of weights and the KV of {document['kv_tokens']:,} tokens")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
    figure.text(0.01, 0.01, f"{document['base']}; {document['text']}; {document['date'][:10]}.", fontsize=8.5,
                color="#555b66")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(file, metadata={"Date": None, "Description": json.dumps(shown)})
    pyplot.close(figure)
