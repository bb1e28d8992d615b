"""Accuracy: what each format of weights and KV cache costs a model, beside the memory that it saves.

    python -m benchmarks.accuracy demo/checkpoint
    python -m benchmarks.accuracy ./model-awq ./workspace --against ./model --text book.txt

Perplexity, divergence and agreement over all tokens of a text (converter/accuracy.py); on the demo model also the share
of its held-out questions that are answered correctly. Bytes are those of a GPU, in the model's own dtype."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from backend.accuracy_report import AccuracyReport
from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import DTYPE_SPELLINGS, EngineConfig
from backend.errors import ConfigError
from backend.kv_format import KvFormat
from backend.logs import warnings_only
from backend.memory_plan import kv_block_bytes, weights_bytes
from backend.model_source import ModelSource, open_model
from benchmarks.heldout import heldout_text, is_demo, skills
from benchmarks.record import RESULTS, check_folder, save
from converter.accuracy import EvaluationText, evaluation_text, kv_format_of, measure_baseline
from converter.calibration_text import contents, read_calibration_text

POLICIES = (0, 8, 4)
KV_TOKENS = 1000  # of which the cache's bytes are given
SKILLS = {"tool call": "tools", "recall": "recall", "all": "all"}  # in the printed table; the JSON has every skill


@click.command(context_settings=CONTEXT_SETTINGS,
               epilog="Example: python -m benchmarks.accuracy ./model-awq --against ./model --text book.txt")
@click.argument("models", nargs=-1, required=True)
@click.option("--against", help="The unquantised model that all are compared with.  [default: the first of MODELS]")
@click.option("--text", help="What to predict: a .txt, .jsonl or .parquet file, or a dataset of the local Hugging Face "
                             "cache, as in converter.auto_awq.  [default: the text built in there; for the demo "
                             "model its held-out conversations]")
@click.option("--max_tokens", type=click.IntRange(min=2), default=16_384, show_default=True, help="Of --text.")
@click.option("--quant_policy", "policies", type=click.Choice([str(policy) for policy in POLICIES]), multiple=True,
              help="KV cache formats; may be given several times.  [default: all]")
@click.option("--device", help="auto, cpu or cuda.")
@click.option("--dtype", type=click.Choice(("auto", *DTYPE_SPELLINGS)))
@click.option("--skills/--no_skills", "asks", default=True, help="On the demo model: also ask its questions.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many of the demo model's conversations.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
def main(models: tuple[str, ...], against: str | None, text: str | None, max_tokens: int,
         policies: tuple[str, ...], device: str | None, dtype: str | None, asks: bool, limit: int | None,
         file: Path | None) -> None:
    """Loss against memory of MODELS, workspaces or Hugging Face folders, each with every KV cache format."""
    if file is not None:
        check_folder(file)
    base = open_model(against or models[0])
    if base.model.quant is not None:
        raise ConfigError(f"the weights of {base.path} are quantised; name the model as it was with --against")
    predicted = _text(base, text, max_tokens, limit)
    sources = [base, *(open_model(model) for model in models)]
    options = {"device": device, "dtype": dtype}
    formats = list(_formats(_distinct(sources), [int(policy) for policy in policies] or list(POLICIES), options))
    with _bar(base, predicted) as bar:
        baseline = measure_baseline(base, formats[0][1], predicted, bar.update)
    rows = []
    for source, engine in formats:
        with _bar(source, predicted) as bar:
            report = baseline.compare(source, engine, bar.update)
        correct = skills(source, engine, limit) if asks and is_demo(source.model) else {}
        rows.append(_row(source, engine, report, correct))
        click.echo(table(rows[-1:], has_titles=len(rows) == 1))
    name = "demo" if is_demo(base.model) else re.sub(r"[^\w.]+", "_", base.model.model_name)
    save(file or RESULTS / f"accuracy_{name}.json", {
        "model": name, "base": baseline.description, "text": predicted.name, "num_tokens": predicted.num_tokens,
        "kv_tokens": KV_TOKENS, "formats": rows})


def table(rows: Sequence[dict[str, Any]], has_titles: bool = True) -> str:
    """The formats, one a line."""
    titles = (f"{'model':16} {'weights':42} {'KV cache':22} {'weights':>9} {'KV of 1,000':>11} {'perplexity':>10} "
              f"{'change':>8} {'KL':>9} {'top-1':>7} " + " ".join(f"{title:>7}" for title in SKILLS.values()))
    lines = [f"{row['model']:16} {row['weights']:42} {row['kv']:22} {_mib(row['weights_bytes']):>9} "
             f"{_mib(row['kv_bytes']):>11} {row['perplexity']:>10.4f} {row['perplexity_increase']:>+8.2%} "
             f"{row['kl_divergence']:>9.2e} {row['top1_agreement']:>7.2%} " + " ".join(
                 f"{row['skills'][skill]['correct']:>7.1%}" if skill in row["skills"] else f"{'–':>7}"
                 for skill in SKILLS) for row in rows]
    return "\n".join([titles] * has_titles + lines)


def _bar(source: ModelSource, text: EvaluationText) -> tqdm:
    """On a terminal only, and gone when it is full."""
    return tqdm(total=text.num_tokens, unit=" tokens", desc=source.path.name, leave=False, disable=None)


def _text(base: ModelSource, dataset: str | None, max_tokens: int, limit: int | None) -> EvaluationText:
    if dataset is None and is_demo(base.model):
        return heldout_text(limit)
    text = read_calibration_text(dataset, max_tokens)
    documents = (document if isinstance(document, str) else contents(document) for document in text.documents)
    return evaluation_text(text.name, "\n".join(documents), base, max_tokens=max_tokens)


def _distinct(sources: Sequence[ModelSource]) -> list[tuple[ModelSource, ModelSource]]:
    """Each source with the first that has its weights, which may be itself; a folder that is named twice comes once."""
    found: dict[Path, tuple[ModelSource, ModelSource]] = {}
    for source in sources:
        path = source.path.resolve()
        if path not in found:
            firsts = [first for other, first in found.values() if other is first]
            found[path] = source, next((first for first in firsts if _has_same_weights(first, source)), source)
    return list(found.values())


def _has_same_weights(one: ModelSource, other: ModelSource) -> bool:
    """Whether two folders compute the same, called what they may be. Reads all weights where they do."""
    shapes = [dataclasses.replace(source.model, model_name="", bos_token_id=None, eos_token_ids=())
              for source in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    ours, theirs = dict(one.tensors()), dict(other.tensors())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name][:], theirs[name][:]) for name in ours)


def _formats(sources: Sequence[tuple[ModelSource, ModelSource]], policies: Sequence[int],
             options: dict[str, Any]) -> Iterator[tuple[ModelSource, EngineConfig]]:
    """Each source's weights with each kind of KV, the unquantised base first. The same weights come once with each, but
    with calibrated scales, which are a source's own; what is left out is said."""
    seen = set()
    for source, first in sources:
        left_out = []
        for policy in dict.fromkeys((0, *policies) if source is sources[0][0] else policies):
            engine = source.engine.with_options({**options, "quant_policy": policy})
            kv = kv_format_of(source, engine)
            key = (source if kv is KvFormat.CALIBRATED_INT8 else first).path, kv
            if key in seen:
                left_out.append(kv.value)
            else:
                seen.add(key)
                yield source, engine
        if left_out:
            click.echo(f"{source.path} has the weights of {first.path}; not measured again with KV "
                       f"{', '.join(left_out)}", err=True)


def _row(source: ModelSource, engine: EngineConfig, report: AccuracyReport,
         correct: dict[str, dict[str, float]]) -> dict[str, Any]:
    dtype = source.model.dtype
    block_bytes = kv_block_bytes(source.model, engine, dtype, kv_format_of(source, engine))
    kept = {name: value for name, value in dataclasses.asdict(report).items()
            if name in ("weights", "kv", "perplexity", "kl_divergence", "top1_agreement")}
    return {"model": source.path.name, **kept, "perplexity_increase": round(report.perplexity_increase, 6),
            "weights_bytes": weights_bytes(source.model, dtype, 1),
            "kv_bytes": KV_TOKENS * block_bytes // engine.block_size,
            "skills": correct}


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f}Mi"


if __name__ == "__main__":
    with warnings_only():
        run(main)
