"""Results table: what the JSON files of benchmarks/results/ say, as Markdown tables and as points of the plot.

Every number of docs/performance.md and of README.md's table of a GPU comes from here; report.py writes them there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS

Json = dict[str, Any]

BATCHES = {"a1": 1, "a16": 16, "a64": 64, "a256": 256}  # test → its batch
SHAPE_NAMES = {"m7": "m7, Llama-2-7B's shape", "g8": "g8, InternLM2.5-7B's shape"}
# Quantised weights or KV: what throughput.py appends to a shape → in words, and where the other engines' figures are.
FORMATS = {"_awq": ("weights int4", "w4a16"), "_kv8": ("KV int8", "kv8"), "_kv4": ("KV int4", "kv4"),
           "_awq_kv8": ("weights int4, KV int8", ""), "_awq_kv4": ("weights and KV int4", "")}
QUANTISED = {shape + suffix: (shape, *described) for suffix, described in FORMATS.items() for shape in SHAPE_NAMES}
# What a user feels first, for the README.
HEADLINES = (("m7", "b"), ("g8", "b"), ("g8", "a256"), ("g8", "c"), ("m7", "d1"), ("m7_awq", "b"), ("g8_awq", "b"),
             ("g8_awq", "a16"))
MEANINGS = {figure: workload.summary for workload in WORKLOADS.values() for figure in workload.figure_names}
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Results:
    """The files of a folder.

    ours     shape, or name in QUANTISED → test → its figure, of the newest run that has it
    runs     the documents that those figures are from
    peers    the other engines' figures
    kernels, steps  shape → document, where measured
    starts          the documents, one for each run
    traces          decode steps taken apart
    accuracies      what formats of weights and KV cost a model
    grammars        decode steps with and without grammars"""

    ours: dict[str, Json]
    runs: list[Json]
    peers: Json
    starts: list[Json]
    kernels: dict[str, Json]
    steps: dict[str, Json]
    traces: list[Json]
    accuracies: list[Json] = field(default_factory=list)
    grammars: list[Json] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Results:
        documents = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}

        def named(prefix: str) -> list[Json]:
            return [document for name, document in documents.items() if name.startswith(prefix)]

        ours: dict[str, Json] = {name: {} for name in (*SHAPE_NAMES, *QUANTISED)}
        runs = sorted((run for run in named("throughput_") if run["engine"] == "millrace" and variant(run) in ours),
                      key=lambda run: run["date"])
        source = {}
        for run in runs:
            ours[variant(run)] |= run["tests"]
            source |= dict.fromkeys(((variant(run), test) for test in run["tests"]), run)
        return cls(ours, [run for run in runs if run in source.values()], documents["peers_h200.json"],
                   named("start_"),
                   {document["shape"]: document for document in named("kernels_")},
                   {document["shape"]: document for document in named("step_table_")},
                   [document for shape in SHAPE_NAMES for document in named(f"step_{shape}_")], named("accuracy_"),
                   named("structured_output_"))

    def peer(self, engine: str, shape: str, test: str, section: str = "bf16") -> float | None:
        return self.peers.get(section, {}).get(shape, {}).get(engine, {}).get(test)

    def conditions(self, names: Iterable[str]) -> list[str]:
        """Of the runs of these shapes or names in QUANTISED."""
        return [f"* Millrace: {condition(run)}" for run in self.runs if variant(run) in names]

    def unit(self, shape: str, test: str) -> str:
        figure = self.ours[shape].get(test)
        return figure["unit"] if figure else self.peers["units"][test]


def throughput(results: Results) -> str:
    """The tests of each shape, all engines side by side."""
    engines = results.peers["engines"]
    parts = []
    for shape, name in SHAPE_NAMES.items():
        ours = results.ours[shape]
        rows = []
        for test, meaning in MEANINGS.items():
            peers = [results.peer(engine, shape, test) for engine in engines]
            if test in ours or any(peers):
                figure = ours.get(test, {})
                share = f"{figure['share']:.0%}" if figure else NOTHING
                unit = results.unit(shape, test)
                rows.append([test, meaning, unit, number(figure.get("value"), unit),
                             *(number(value, unit) for value in peers), number(figure.get("limit"), unit), share])
        titles = ["test", name, "unit", "Millrace", *(engine["name"] for engine in engines.values()), "floor", "share"]
        parts.append(markdown(titles, rows, num_text=3))
    conditions = results.conditions(SHAPE_NAMES)
    conditions += [f"* {engine['name']} {engine['version']}: {engine['settings']}" for engine in engines.values()]
    peers = results.peers
    conditions.append(f"* The other engines: {peers['device']}, driver {peers['driver']}, torch {peers['torch']}, "
                      f"Python {peers['python']}, {peers['date']}; read {peers['read_bandwidth_tb_s']} TB/s, matmul "
                      f"{peers['matmul_tflop_s']} TFLOP/s. {peers['conditions']}")
    return "\n\n".join([*parts, "\n".join(conditions)])


def quantised(results: Results) -> str:
    """The same tests with quantised weights or KV, beside those of bf16."""
    engines = {engine: results.peers["engines"][engine]["name"] for engine in ("vllm", "lmdeploy")}
    rows = []
    for name, (shape, words, section) in QUANTISED.items():
        ours, bf16 = results.ours[name], results.ours[shape]
        for test, meaning in MEANINGS.items():
            theirs = [results.peer(engine, shape, test, section) for engine in engines]
            if test in ours or any(theirs):
                figure, unit = ours.get(test, {}), results.unit(shape, test)
                share = f"{figure['share']:.0%}" if figure else NOTHING
                rows.append([f"{shape}, {words}", f"{test}: {meaning}", unit, number(figure.get("value"), unit),
                             number(bf16.get(test, {}).get("value"), unit), *(number(value, unit) for value in theirs),
                             number(figure.get("limit"), unit), share])
    titles = ["model", "test", "unit", "Millrace", "its bf16", *engines.values(), "floor", "share"]
    conditions = [*results.conditions(QUANTISED),
                  "* The other engines: as above, with weights int4 on a second machine of the kind that day "
                  "(read 4.44 TB/s, matmul 781 TFLOP/s). vLLM's 8-bit KV is fp8."]
    return "\n\n".join([markdown(titles, rows, num_text=3), "\n".join(conditions)])


def headlines(results: Results) -> str:
    """The README's few rows."""
    engines = results.peers["engines"]
    rows = []
    for name, test in HEADLINES:
        shape, words, section = QUANTISED.get(name, (name, "bf16", "bf16"))
        figure = results.ours[name].get(test, {})
        unit = results.unit(shape, test)
        rows.append([f"{shape}, {words}, {test}: {MEANINGS[test]}", unit, number(figure.get("value"), unit),
                     *(number(results.peer(engine, shape, test, section), unit) for engine in ("vllm", "lmdeploy")),
                     number(figure.get("limit"), unit)])
    titles = ["test", "unit", "Millrace", *(f"{engines[engine]['name']} {engines[engine]['version']}"
                                            for engine in ("vllm", "lmdeploy")), "floor"]
    return f"{markdown(titles, rows, num_text=2)}\n\n{caption(results)}"


def start(results: Results) -> str:
    """Seconds to the first token, and the phases of a warm start."""
    parts = []
    for document in results.starts:
        shape = document["shape"]
        rows = [[name, f"{figures['warm_s']:.1f}", f"{figures['cold_s']:.1f}",
                 ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in figures["warm_phases_s"].items())]
                for name, figures in document["starts"].items()]
        peers = "; ".join(f"{engine} {seconds}" for engine, seconds in results.peers["start_s"].get(shape, {}).items())
        parts += [markdown([f"{shape}, seconds", "warm", "cold", "phases of a warm start"], rows),
                  f"{setting(document)}." + f" Measured with the other engines: {peers}." * bool(peers)]
    return "\n\n".join(parts) or missing("start")


def steps(results: Results) -> str:
    """Milliseconds of a decode step over batch and context, with the share of the floor."""
    parts = []
    for shape, document in results.steps.items():
        cells = {(step["batch"], step["context"]): f"{step['ms']:.2f} ({step['share']:.0%})" + " !" * step["is_cliff"]
                 for step in document["steps"]}
        batches, contexts = (sorted(set(axis)) for axis in zip(*cells, strict=True))
        rows = [[f"{batch:,}", *(cells.get((batch, context), NOTHING) for context in contexts)] for batch in batches]
        num_cliffs = sum(step["is_cliff"] for step in document["steps"])
        parts += [markdown([f"{shape}: batch, context →", *(f"{context:,}" for context in contexts)], rows),
                  f"{num_cliffs} of {len(cells)} points stand over 1.3 times their neighbours' trend. "
                  f"KV cache: {document['kv_token_bytes']['allocated']:,} bytes per token allocated, "
                  f"{document['kv_token_bytes']['planned']:,} planned. {condition(document)}"]
    return "\n\n".join(parts) or missing("step_table")


def taken_apart(results: Results) -> str:
    """Where the time of single decode steps goes, kernel by kernel; what takes under 1 % is left out."""
    parts = []
    for trace in sorted(results.traces, key=lambda trace: (trace["shape"], trace["batch_size"])):
        rows = [[f"`{name}`", f"{kernel['launches']:.0f}", f"{kernel['us']:,.0f}",
                 f"{kernel['us'] / 1000 / trace['step_ms']:.0%}"]
                for name, kernel in trace["kernels"].items() if kernel["us"] / 1000 > 0.01 * trace["step_ms"]]
        title = f"{trace['shape']}, batch {trace['batch_size']}, context {trace['context']:,}"
        parts += [markdown([title, "launches", "µs", "of the step"], rows),
                  f"Step {trace['step_ms']:.2f} ms, of which the host works {trace['host_ms']:.2f} ms. "
                  f"{setting(trace)}."]
    return "\n\n".join(parts) or missing("step")


def kernels(results: Results) -> str:
    """Microseconds of each kernel alone, with the share of the floor."""
    parts = []
    for shape, document in results.kernels.items():
        for group, cases in document["groups"].items():
            columns = list(dict.fromkeys(case["column"] for case in cases))
            cells = {(case["row"], case["column"]): f"{case['us']:,.1f} ({case['share']:.0%})" for case in cases}
            rows = [[row, *(cells.get((row, column), NOTHING) for column in columns)]
                    for row in dict.fromkeys(case["row"] for case in cases)]
            parts.append(markdown([f"{shape} {group}", *columns], rows))
        parts.append(condition(document))
    return "\n\n".join(parts) or missing("kernels")


def grammars(results: Results) -> str:
    """What it costs a decode step that all its rows follow grammars."""
    parts = []
    for run in results.grammars:
        if "step_ms" not in run:  # measured without a GPU
            continue
        rows = [[run["shape"], str(run["batch_size"]), f"{run['context']:,}", f"{run['step_ms']:.2f}",
                 f"{run['step_with_grammars_ms']:.2f}", f"{run['step_with_grammars_ms'] / run['step_ms'] - 1:+.1%}",
                 f"{run['mask_ms'][str(run['batch_size'])]:.2f}"]]
        titles = ["shape", "rows", "context", "step, ms", "with grammars, ms", "cost", "masks on the CPU, ms"]
        parts += [markdown(titles, rows), f"{setting(run)}."]
    return "\n\n".join(parts) or missing("structured_output")


def points(results: Results) -> Json:
    """What the plot shows: shape → engine's name or "floor" → [[batch, tokens/s], …]."""
    shown: Json = {}
    for shape in SHAPE_NAMES:
        ours = results.ours[shape]
        lines = {"floor": [(BATCHES[test], ours[test]["limit"]) for test in BATCHES if test in ours],
                 "Millrace": [(BATCHES[test], ours[test]["value"]) for test in BATCHES if test in ours]}
        for engine, description in results.peers["engines"].items():
            lines[description["name"]] = [(BATCHES[test], value) for test in BATCHES
                                          if (value := results.peer(engine, shape, test)) is not None]
        shown[shape] = {name: [list(point) for point in line] for name, line in lines.items() if line}
    return shown


def caption(results: Results) -> str:
    """Where, with what and when the figures of plot and README were measured, in a line."""
    dates = sorted({run["date"][:10] for run in results.runs})
    engines = [f"{engine['name']} {engine['version']}" for engine in results.peers["engines"].values()]
    return (f"{results.peers['device']}. Millrace: {' and '.join(dates) or 'not measured yet'}. "
            f"{', '.join(engines)}: {results.peers['date']}.")


def variant(run: Json) -> str:
    """What throughput.py measured: a shape, with how its weights and KV are quantised."""
    return run["shape"] + (f"_kv{run['quant_policy']}" if run["quant_policy"] else "")


def condition(document: Json) -> str:
    """The setting, and what the card could do then."""
    return (f"{setting(document)}; read {document['read_bandwidth_tb_s']} TB/s, matmul "
            f"{document['matmul_tflop_s']} TFLOP/s.")


def setting(document: Json) -> str:
    """Where, with what and when a document was measured."""
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in ("torch", "triton"))
    return (f"{document['device']}, {versions}, Python {document['python']}, `{document['command']}`, "
            f"{document['date']}")


def number(value: float | None, unit: str) -> str:
    """A figure with as many digits as mean something."""
    if value is None:
        return NOTHING
    if unit == "ms":
        return f"{value:.2f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def markdown(titles: list[str], rows: Iterable[list[str]], num_text: int = 1) -> str:
    """A table; its first num_text columns are text, the others numbers."""
    alignment = ["---"] * num_text + ["---:"] * (len(titles) - num_text)
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, alignment, *rows))


def missing(module: str) -> str:
    return f"Not measured yet; `python -m benchmarks.{module}` does."
