"""Request log: one line for each call once it is answered, where --log_requests asks for it. No prompt, no text.

With --log_format json the line's numbers are fields of their own. Used by openai/recorder.py."""

from __future__ import annotations

import logging
import time

from backend.serving.request_record import RequestRecord

logger = logging.getLogger(__name__)


def log_request(record: RequestRecord, method: str, route: str, status: int) -> None:
    """One line at level info, of a call that has just ended."""
    duration_s = time.perf_counter() - record.began_s
    timing = record.timing()
    fields = {
        "request_id": record.request_id, "method": method, "route": route, "status": status,
        "duration_s": round(duration_s, 6),
        "prompt_tokens": sum(run.num_prompt_tokens for run in record.runs),
        "cached_tokens": sum(run.num_cached_tokens for run in record.runs),
        "completion_tokens": sum(run.num_completion_tokens for run in record.runs),
        "preemptions": sum(run.timing.num_preemptions for run in record.runs if run.timing is not None),
        **{f"{phase}_s": round(seconds, 6) for phase, seconds in timing.items()},
        "outcomes": [run.outcome for run in record.runs]}
    logger.info("%s %s %s: %d in %.3f s, %d prompt tokens (%d cached), %d completion tokens", record.request_id, method,
                route, status, duration_s, fields["prompt_tokens"], fields["cached_tokens"],
                fields["completion_tokens"], extra={"fields": fields})
