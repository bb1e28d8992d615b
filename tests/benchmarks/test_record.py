"""Record: what stands beside a number."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from backend.errors import ConfigError
from benchmarks.record import save


def test_a_result_has_device_versions_command_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughput", "--json", "somewhere/else.json", "--shape", "m7"])
    save(tmp_path / "new" / "result.json", {"value": 3})
    document = json.loads((tmp_path / "new" / "result.json").read_text())
    assert document["value"] == 3
    assert document["device"] and document["date"].endswith("UTC") and document["versions"]["torch"]
    assert document["command"].endswith("--shape m7") and "somewhere" not in document["command"]


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"result\.json cannot be written: (Not a directory|File exists); make"):
        save(tmp_path / "file" / "result.json", {})

    def full(*_given, **_options):
        (tmp_path / ".result.json.partial").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match=r"result\.json cannot be written: No space left on device; make room or"):
        save(tmp_path / "result.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("secret", [["--api_key", "secret"], ["--api-key=secret"]])
def test_a_key_is_not_kept(tmp_path, monkeypatch, secret):
    monkeypatch.setattr(sys, "argv", ["serving", "http://host", *secret, "--rates", "1"])
    save(tmp_path / "result.json", {})
    command = json.loads((tmp_path / "result.json").read_text())["command"]
    assert "secret" not in command and command.endswith("http://host --rates 1")
