"""Logs: one line per decision, on stderr, the same in every process of ours.

Used by command lines and by the entry points of the engine's and the ranks' processes; libraries only log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def configure_logging(level: int = logging.INFO) -> None:
    """Start-up decisions and warnings to stderr. Does nothing where the embedding program has configured logging."""
    logging.basicConfig(level=level, format="%(levelname)-5s %(message)s", stream=sys.stderr)


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
