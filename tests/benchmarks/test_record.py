"""Record: what stands beside a number."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.record import save


def test_a_result_has_device_versions_command_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughput", "--json", "somewhere/else.json", "--shape", "m7"])
    save(tmp_path / "new" / "result.json", {"value": 3})
    document = json.loads((tmp_path / "new" / "result.json").read_text())
    assert document["value"] == 3
    assert document["device"] and document["date"].endswith("UTC") and document["versions"]["torch"]
    assert document["command"].endswith("--shape m7") and "somewhere" not in document["command"]


@pytest.mark.parametrize("secret", [["--api_key", "secret"], ["--api-key=secret"]])
def test_a_key_is_not_kept(tmp_path, monkeypatch, secret):
    monkeypatch.setattr(sys, "argv", ["serving", "http://host", *secret, "--rates", "1"])
    save(tmp_path / "result.json", {})
    command = json.loads((tmp_path / "result.json").read_text())["command"]
    assert "secret" not in command and command.endswith("http://host --rates 1")
