"""Logs: one line per decision, on stderr, the same in every process of ours.

Used by command lines and by the entry points of the engine's and the ranks' processes; libraries only log."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOG_FORMATS = ("text", "json")
_VARIABLE = "MILLRACE_LOG_FORMAT"  # in the environment, so that the processes we start write alike


def configure_logging(level: int = logging.INFO) -> None:
    """Start-up decisions and warnings to stderr. Does nothing where the embedding program has configured logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(os.environ.get(_VARIABLE)))
    logging.basicConfig(level=level, handlers=[handler])


def choose_log_format(name: str) -> None:
    """Of LOG_FORMATS, for this process and those it starts: text, or an object with its fields for each line."""
    if name == os.environ.get(_VARIABLE, LOG_FORMATS[0]):
        return
    os.environ[_VARIABLE] = name
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_formatter(name))


@contextmanager
def warnings_only() -> Iterator[None]:
    """Inside, the backend does not say how a model starts: for commands of which that is not the matter."""
    backend = logging.getLogger("backend")
    level = backend.level
    backend.setLevel(logging.WARNING)
    try:
        yield
    finally:
        backend.setLevel(level)


def _formatter(name: str | None) -> logging.Formatter:
    return _JsonFormatter() if name == "json" else logging.Formatter("%(levelname)-5s %(message)s")


class _JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the fields that a record brings as `fields`, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
