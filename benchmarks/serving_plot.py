"""Serving plot: throughput against waiting, one line per server. `python -m benchmarks.serving_plot A.json B.json`.

Reads what serving.py kept; needs matplotlib. The picture carries its points as its description. Used by serving.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.plot import COLOURS, styled_pyplot

OTHER_COLOURS = ("#7b4fc9", "#c2185b", "#00838f", "#795548")
WAITS = (("ttft_ms", "time to first token, ms"), ("itl_ms", "time between parts, ms"))


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--file", default="serving.svg", type=click.Path(dir_okay=False, path_type=Path))
def main(results: tuple[Path, ...], file: Path) -> None:
    draw([json.loads(result.read_text(encoding="utf-8")) for result in results], file)
    click.echo(f"wrote {file}")


def points(result: dict[str, Any]) -> dict[str, list[list[float]]]:
    """[output tokens/s, ms] of each rate, by "ttft_ms p50" and so on; rates of which no answer came are left out."""
    return {f"{name} {level}": [[run["output_tokens_per_s"], run[name][level]] for run in result["runs"] if run[name]]
            for name, _ in WAITS for level in ("p50", "p99")}


def draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Time to first token left, between parts right; solid the median, dashed the 99th percentile.

    Raises ClickException without matplotlib."""
    pyplot = styled_pyplot()
    figure, axes = pyplot.subplots(1, len(WAITS), figsize=(10, 4.2))
    lines = {result["server"]: points(result) for result in results}
    others = iter(OTHER_COLOURS * len(lines))
    for server, line in lines.items():
        colour = next((COLOURS[name] for name in COLOURS if server.startswith(name)), None) or next(others)
        for axis, (name, title) in zip(axes, WAITS, strict=True):
            for level, style in (("p50", "-"), ("p99", "--")):
                if line[f"{name} {level}"]:
                    axis.plot(*zip(*line[f"{name} {level}"], strict=True), marker="o", markersize=4, linestyle=style,
                              color=colour, label=f"{server}, {level}")
            is_log = any(wait > 0 for line in lines.values() for _, wait in line[f"{name} p50"])
            axis.set(xlabel="output tokens/s", ylabel=title, yscale="log" if is_log else "linear")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=8.5)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Description": json.dumps(lines)})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
