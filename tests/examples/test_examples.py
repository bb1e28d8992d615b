"""Each example does against the demo model what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES

RUN_TIMEOUT_S = 120


def run(base_url: str, *command: str) -> str:
    """What a command printed; it has to succeed."""
    environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True,
                          timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_tested_and_listed():
    here = Path(__file__).read_text(encoding="utf-8")
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".sh", ".mjs"):
            assert f'"{file.name}"' in here and f"examples/{file.name}" in readme


def test_chat_with_openais_client(base_url):
    greeting, counts, recalled = run(base_url, sys.executable, "openai_chat.py").splitlines()
    assert "Ada" in greeting and counts.endswith("new ones)") and recalled == "Your name is Ada."


def test_tools_with_openais_client(base_url):
    *calls, answer = run(base_url, sys.executable, "openai_tools.py").splitlines()
    assert [call.partition("(")[0] for call in calls] == ["add", "mul"]
    assert calls[1].endswith("= 16") and "16" in answer


def test_json_schema_with_openais_client(base_url):
    total, animal = run(base_url, sys.executable, "openai_json.py").splitlines()
    assert total.startswith("{'sum': ") and animal.startswith("Animal(kind='")


def test_langchain(base_url):
    recalled, answer = run(base_url, sys.executable, "langchain_chat.py").splitlines()
    assert recalled == "Your name is Ada." and "16" in answer


def test_openais_agents_sdk(base_url):
    assert "16" in run(base_url, sys.executable, "agents_tools.py")


def test_openais_client_for_node(base_url):
    if not (EXAMPLES / "node_modules" / "openai").is_dir():
        pytest.skip("needs npm's openai, which `make test` installs where there is npm: npm install --prefix examples")
    greeting, recalled, refused = run(base_url, "node", "openai_chat.mjs").splitlines()
    assert "Ada" in greeting and recalled == "Your name is Ada." and refused.startswith("refused: 404 ")


def test_curl(base_url):
    name, whole, *events = [line for line in run(base_url, "bash", "curl.sh").splitlines() if line]
    assert name == "model: internlm2"
    assert json.loads(whole)["choices"][0]["message"]["content"] == "Seven plus twelve is nineteen."
    *chunks, done = [event.removeprefix("data: ") for event in events]
    assert done == "[DONE]"
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in json.loads(chunk)["choices"])
    assert text == "Seven plus twelve is nineteen."
