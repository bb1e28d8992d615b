"""Record: what stands beside a number."""

from __future__ import annotations

import json
import sys

from benchmarks.record import save


def test_a_result_has_device_versions_command_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughput", "--json", "somewhere/else.json", "--shape", "m7"])
    save(tmp_path / "new" / "result.json", {"value": 3})
    document = json.loads((tmp_path / "new" / "result.json").read_text())
    assert document["value"] == 3
    assert document["device"] and document["date"].endswith("UTC") and document["versions"]["torch"]
    assert document["command"].endswith("--shape m7") and "somewhere" not in document["command"]
