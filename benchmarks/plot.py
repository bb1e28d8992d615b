"""Plot: throughput against batch, all engines and the floor, as docs/throughput.svg. Needs matplotlib.

The picture carries its points as its description, by which a test knows that it shows what the results say.
Used by report.py; its style also by accuracy_table.py."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"Millrace": "#0b62d6", "vLLM": "#e07b00", "LMDeploy": "#2a9d4e", "transformers": "#8a8f98",
           "floor": "#20242b"}
MARKERS = {"Millrace": "o", "vLLM": "s", "LMDeploy": "^", "transformers": "D"}


def draw(points: dict[str, dict[str, list[list[float]]]], titles: dict[str, str], caption: str, file: Path) -> None:
    """Above tokens/s, below the share of the floor; a column per shape.

    points   results_table.points
    titles   of each shape's column
    caption  the conditions, below everything"""
    pyplot = styled_pyplot()
    figure, axes = pyplot.subplots(2, len(points), figsize=(10, 7.2), sharex=True, sharey="row",
                                   gridspec_kw={"height_ratios": (3, 2)})
    for (shape, lines), rate, share in zip(points.items(), *axes, strict=True):
        rate.set(title=titles[shape], yscale="log")
        share.set(xlabel="batch: prompts of 1 token, 2,048 new tokens each", xscale="log", ylim=(0, 1.05))
        floor = dict(map(tuple, lines.get("floor", ())))
        for name, line in lines.items():
            _line(rate, name, line)
            _line(share, name, [[batch, value / floor[batch]] for batch, value in line if batch in floor])
        share.set_xticks([1, 16, 64, 256], ["1", "16", "64", "256"])
        share.minorticks_off()
    axes[0][0].set_ylabel("output tokens/s")
    axes[1][0].set_ylabel("share of the floor")
    axes[0][0].legend(frameon=False)
    figure.text(0.01, 0.01, caption, fontsize=8.5, color="#555b66")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(file, metadata={"Date": None, "Description": json.dumps(points)})
    pyplot.close(figure)


def styled_pyplot() -> ModuleType:
    """pyplot, set up for pictures of this project: SVG, the same bytes for the same points. Raises ClickException."""
    try:
        import matplotlib
    except ImportError:
        raise click.ClickException("the plot needs matplotlib: pip install -e '.[bench]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "millrace", "font.size": 10, "axes.spines.top": False,
                                "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e7ec"})
    from matplotlib import pyplot

    return pyplot


def drawn_points(svg: str) -> Any:
    """The points that a picture shows."""
    return json.loads(unescape(re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL).group(1)))


def _line(axes: Axes, name: str, line: list[list[float]]) -> None:
    if not line:
        return
    style = {"linestyle": "--", "linewidth": 1.2} if name == "floor" else {
        "marker": MARKERS[name], "linewidth": 2.4 if name == "Millrace" else 1.4, "markersize": 6}
    axes.plot(*zip(*line, strict=True), label=name, color=COLOURS[name], **style)
