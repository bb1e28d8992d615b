"""Logs: the two formats of a line."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging
from backend.logs import choose_log_format, configure_logging
from backend.processes import start_process
configure_logging()
choose_log_format({format!r})
logging.getLogger("a").warning("it is %s", "so", extra={{"fields": {{"request_id": "mine-1"}}}})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a").exception("it failed")
child = start_process(logging.warning, ("of a child",), "child")
child.join()
"""


def lines(format: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", SCRIPT.format(format=format)], check=True, text=True,
                            capture_output=True, timeout=60)
    return result.stderr.splitlines()


def test_as_text_a_line_is_a_level_and_a_message():
    written = lines("text")
    assert written[0] == "WARNING it is so"
    assert written[-1] == "WARNING of a child"


def test_as_json_each_line_is_an_object_in_processes_that_are_started_too():
    first, failure, child = map(json.loads, lines("json"))
    assert first["time"].endswith("Z")
    assert {name: first[name] for name in ("level", "logger", "message", "request_id")} == {
        "level": "warning", "logger": "a", "message": "it is so", "request_id": "mine-1"}
    assert "ZeroDivisionError" in failure["traceback"]
    assert child["message"] == "of a child"
