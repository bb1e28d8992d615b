"""Response store: answers that a later request names with previous_response_id, kept within bounds.

The least recently used are forgotten first. SQLite keeps them: in this process's memory, or in a file that several
processes share. Used by responses.py and workers.py."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_RESPONSES = 4096
MAX_BYTES = 64 * 2**20
MAX_SHARE = 16  # of these, of which an answer has one at most: reading and writing it keeps everybody waiting
LOCK_TIMEOUT_S = 5.0
# The index holds all that a bound needs: without it every answer's page would be read for the sum.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS response (id TEXT PRIMARY KEY, used_ns INTEGER, num_bytes INTEGER, json BLOB);
CREATE INDEX IF NOT EXISTS use ON response (used_ns, num_bytes);"""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """body: the answer as it was sent. input_items: all that it answers, earlier turns included; instructions are not
    among them, which the API does not carry over."""

    body: Mapping[str, Any]
    input_items: tuple[Mapping[str, Any], ...]

    @property
    def items(self) -> tuple[Mapping[str, Any], ...]:
        """The conversation up to and with this answer."""
        return (*self.input_items, *self.body["output"])


class ResponseStore:
    """Answers by id. One of more than a MAX_SHARE-th of max_bytes is not kept. Earlier items are stored, and counted,
    with every answer to them.

    file  shared with the stores of other processes; None: nobody else's"""

    def __init__(self, file: str | None = None, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._database = sqlite3.connect(file or ":memory:", timeout=LOCK_TIMEOUT_S, isolation_level=None,
                                         check_same_thread=False)
        # Nothing has to survive a crash, and no second file is left beside the first.
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_SCHEMA)

    def size(self) -> tuple[int, int]:
        """How many answers, and bytes of their JSON."""
        return self._database.execute("SELECT COUNT(*), COALESCE(SUM(num_bytes), 0) FROM response").fetchone()

    def put(self, response: StoredResponse) -> None:
        document = msgspec.json.encode((response.body, response.input_items))
        if len(document) > self._max_bytes // MAX_SHARE:
            return
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # committed, or undone
            self._database.execute("INSERT OR REPLACE INTO response VALUES (?, ?, ?, ?)",
                                   (response.body["id"], time.monotonic_ns(), len(document), document))
            count, num_bytes = self.size()
            while count > self._max_responses or num_bytes > self._max_bytes:
                self._database.execute(
                    "DELETE FROM response WHERE id = (SELECT id FROM response ORDER BY used_ns LIMIT 1)")
                count, num_bytes = self.size()

    def get(self, response_id: str) -> StoredResponse | None:
        found = self._database.execute("UPDATE response SET used_ns = ? WHERE id = ? RETURNING json",
                                       (time.monotonic_ns(), response_id)).fetchone()
        if found is None:
            return None
        body, input_items = msgspec.json.decode(found[0])
        return StoredResponse(body, tuple(input_items))

    def delete(self, response_id: str) -> bool:
        """Whether it was there."""
        return self._database.execute("DELETE FROM response WHERE id = ?", (response_id,)).rowcount > 0

    def close(self) -> None:
        self._database.close()
