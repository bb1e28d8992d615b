"""Benchmarks where packages of an extra are not installed: --help works, and what is missing is one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

# As `make demo` leaves it: without what only tests and benchmarks need.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("psutil", "pytest", "matplotlib")))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("module", ["benchmarks.serving", "benchmarks.streaming"])
def test_help_needs_nothing_more(module):
    result = run(module, "--help")
    assert result.returncode == 0 and "Usage:" in result.stdout, result.stderr


@pytest.mark.parametrize("arguments, extra", [
    (["benchmarks.serving", "http://127.0.0.1:1", "--server_pid", "1"], "'.[bench]'"),
    (["benchmarks.streaming", "--rounds", "1"], "'.[dev,serve]'")])
def test_what_is_missing_is_named_with_its_cure(arguments, extra):
    result = run(*arguments)
    assert result.returncode != 0 and result.stderr.count("\n") == 1, result.stderr
    assert f"pip install -e {extra}" in result.stderr
