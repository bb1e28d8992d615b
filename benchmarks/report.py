"""Report: writes what benchmarks/results/ says into README.md and the pages of docs/, and draws their pictures.

    python -m benchmarks.report

Text between `<!-- NAME -->` and `<!-- end of NAME -->` is this module's; everything else is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from backend.command_line import CONTEXT_SETTINGS, run
from benchmarks import accuracy_table, plot, results_table
from benchmarks.record import RESULTS
from benchmarks.results_table import Json, Results

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md", ROOT / "docs" / "quantisation.md",
         ROOT / "docs" / "tools.md")
PICTURE = ROOT / "docs" / "throughput.svg"
ACCURACY_PICTURE = ROOT / "docs" / "accuracy.svg"
DRAWN_MODEL = "demo"  # whose accuracy the picture shows
SECTIONS: dict[str, Callable[[Results], str]] = {
    "throughput": results_table.throughput, "quantised": results_table.quantised,
    "headlines": results_table.headlines, "start": results_table.start,
    "steps": results_table.steps,
    "taken_apart": results_table.taken_apart, "kernels": results_table.kernels,
    "grammars": results_table.grammars,
    "accuracy": lambda results: accuracy_table.accuracy(results.accuracies), "plans": lambda _: accuracy_table.plans()}


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.report")
def main() -> None:
    """Brings page, README and picture up to date with the results."""
    results = Results.read(RESULTS)
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8"), results), encoding="utf-8")
        click.echo(f"wrote {page}")
    plot.draw(results_table.points(results), results_table.SHAPE_NAMES, f"bf16. {results_table.caption(results)}",
              PICTURE)
    click.echo(f"wrote {PICTURE}")
    accuracy_table.draw(drawn_accuracy(results), ACCURACY_PICTURE)
    click.echo(f"wrote {ACCURACY_PICTURE}")


def drawn_accuracy(results: Results) -> Json:
    return next(document for document in results.accuracies if document["model"] == DRAWN_MODEL)


def rewritten(page: str, results: Results) -> str:
    """The page with each of its sections as the results have it now."""
    for name, section in SECTIONS.items():
        marked = rf"(?s)(?<=<!-- {name} -->\n).*?(?=\n<!-- end of {name} -->)"
        page = re.sub(marked, section(results).replace("\\", r"\\"), page)
    return page


if __name__ == "__main__":
    run(main)
