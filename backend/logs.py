"""Logs: one line per decision, on stderr, the same in every process of ours.

Used by command lines and by the entry points of the engine's and the ranks' processes; libraries only log."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: int = logging.INFO) -> None:
    """Start-up decisions and warnings to stderr. Does nothing where the embedding program has configured logging."""
    logging.basicConfig(level=level, format="%(levelname)-5s %(message)s", stream=sys.stderr)
