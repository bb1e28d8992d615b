"""Serving figures: from the outcomes of one run, throughput and the percentiles of waiting; and as a row of a table.

Used by serving.py; serving_plot.py draws them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.openai_stream import Outcome

PERCENTILES = (50, 90, 99)
COLUMNS = (("rate", 8), ("answers", 9), ("lost", 6), ("req/s", 8), ("out tok/s", 11), ("in tok/s", 10),
           *((f"TTFT p{q}", 10) for q in PERCENTILES), *((f"ITL p{q}", 9) for q in PERCENTILES), ("client", 8))


def figures(rate: float, outcomes: Sequence[Outcome], cpu_s: float, server_cpu_s: float | None = None
            ) -> dict[str, Any]:
    """Of one run.

    rate          requests per second that were asked for
    cpu_s         of this process meanwhile
    server_cpu_s  of the server's front end, where it is known
    Waiting is counted from when a request was due, so that a client that is late cannot hide a server that is. Both
    rates are over the time until the last answer."""
    whole = [outcome for outcome in outcomes if outcome.error is None]
    duration_s = max((outcome.ended_s for outcome in outcomes), default=0.0) or 1.0
    num_parts = sum(outcome.num_parts for outcome in outcomes)
    num_new = sum(outcome.num_new_tokens for outcome in whole)
    return {
        "rate": str(rate),
        "num_requests": len(outcomes),
        "num_failed": len(outcomes) - len(whole),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None).most_common(5)),
        "duration_s": round(duration_s, 2),
        "requests_per_s": round(len(whole) / duration_s, 3),
        "output_tokens_per_s": round(num_new / duration_s, 1),
        "input_tokens_per_s": round(sum(outcome.num_prompt_tokens for outcome in whole) / duration_s, 1),
        "num_prompt_tokens": sum(outcome.num_prompt_tokens for outcome in whole),
        "num_cached_tokens": sum(outcome.num_cached_tokens for outcome in whole),
        "num_new_tokens": num_new,
        "tokens_per_part": round(num_new / num_parts, 2) if num_parts else None,
        "most_at_once": most_at_once(outcomes),
        "ttft_ms": spread([(outcome.first_s - outcome.due_s) * 1e3 for outcome in whole]),
        "itl_ms": spread([gap * 1e3 for outcome in whole for gap in outcome.gaps_s]),
        "answer_ms": spread([(outcome.ended_s - outcome.due_s) * 1e3 for outcome in whole]),
        "sent_late_ms": spread([(outcome.sent_s - outcome.due_s) * 1e3 for outcome in outcomes]),
        "client_cpu_share": round(cpu_s / duration_s, 3),
        "client_cpu_us_per_part": round(cpu_s / num_parts * 1e6, 1) if num_parts else None,
        "server_cpu_us_per_token": round(server_cpu_s / num_new * 1e6, 1) if server_cpu_s and num_new else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles (nearest rank) and maximum; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{q}": ordered[max(0, -(-len(ordered) * q // 100) - 1)] for q in PERCENTILES}
    return {name: round(value, 3) for name, value in
            {"mean": statistics.fmean(ordered), **ranks, "max": ordered[-1]}.items()}


def most_at_once(outcomes: Sequence[Outcome]) -> int:
    """Requests that were open at the same time."""
    changes = sorted([(outcome.sent_s, 1) for outcome in outcomes] + [(outcome.ended_s, -1) for outcome in outcomes])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def header() -> str:
    return "".join(name.rjust(width) for name, width in COLUMNS)


def row(figure: dict[str, Any]) -> str:
    """One run's line below header(): times in ms; `client` is the share of a core that this process took."""
    waits = [figure[name].get(f"p{q}") for name in ("ttft_ms", "itl_ms") for q in PERCENTILES]
    cells = [figure["rate"], figure["num_requests"] - figure["num_failed"], figure["num_failed"],
             f"{figure['requests_per_s']:.2f}", f"{figure['output_tokens_per_s']:,.0f}",
             f"{figure['input_tokens_per_s']:,.0f}", *("-" if wait is None else f"{wait:,.1f}" for wait in waits),
             f"{figure['client_cpu_share']:.0%}"]
    return "".join(str(cell).rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))
