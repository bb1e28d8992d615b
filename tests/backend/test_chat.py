"""The chat command, as a user runs it: one shot, through a pipe, in a terminal, and with wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
ARGUMENTS = [sys.executable, "-m", "backend.chat", "internlm2", str(CHECKPOINT), "--temperature", "0",
             "--max_batch_size", "1"]
ENVIRONMENT = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def chat(*options: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ARGUMENTS, *options], input=text, capture_output=True, text=True, timeout=120,
                          env=ENVIRONMENT)


def test_one_prompt_is_answered_and_nothing_else_is_printed():
    result = chat("--prompt", "What is seven plus twelve?")
    assert result.returncode == 0
    assert "nineteen" in result.stdout.lower() or "19" in result.stdout
    assert result.stdout.count("\n") == 1


def test_a_piped_conversation_remembers_until_it_is_ended():
    result = chat(text="My name is Ada.\n\nWhat is my name?\n\nend\nWhat is my name?\n\nexit\nnever read\n\n")
    first, recalled, forgotten, unknown = result.stdout.strip().splitlines()
    assert "Ada" in first and "Ada" in recalled
    assert forgotten == "(the conversation is forgotten)"
    assert "Ada" not in unknown


@pytest.mark.parametrize(("options", "message"), [
    (["--top_p", "1.5", "--prompt", "hi"], "error: top_p=1.5 is out of range; use a number in (0, 1]"),
    (["--session-len", "0", "--prompt", "hi"], "error: session_len=0 is too small"),
    (["--tp", "3", "--prompt", "hi"], "error: tp=3 does not divide kv_head_num=2"),
    (["--sesion_len", "5"], "No such option"),
    (["--session_len", "20", "--prompt", "fox " * 50], "exceed session_len=20"),
])
def test_wrong_input_is_one_line_and_a_failure(options, message):
    result = chat(*options)
    assert result.returncode != 0 and result.stdout == ""
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def terminal():
    process = pexpect.spawn(sys.executable, ARGUMENTS[1:], env=ENVIRONMENT, encoding="utf-8", timeout=60)
    process.expect(">>>")
    yield process
    process.close(force=True)


def test_double_enter_sends_a_message_of_several_lines(terminal):
    terminal.send("Hello!\rWhat is seven plus twelve?\r\r")
    terminal.expect("nineteen")  # to the second line alone
    terminal.expect(">>>")


def test_arrow_up_brings_the_last_message_back(terminal):
    terminal.send("What is seven plus twelve?\r\r")
    terminal.expect("19|nineteen")
    terminal.expect(">>>")
    terminal.send("\x1b[A\r\r")
    terminal.expect("19|nineteen")


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(terminal):
    terminal.send("My name is Ada.\r\r")
    terminal.expect("Ada!")
    terminal.expect(">>>")
    terminal.send("Count from 1 to 60.\r\r")
    terminal.expect("3")
    terminal.sendintr()
    terminal.expect("stopped")
    terminal.expect(">>>")
    terminal.send("What is my name?\r\r")
    terminal.expect("name is Ada")


def test_ctrl_c_at_the_prompt_does_not_leave_and_exit_does(terminal):
    terminal.sendintr()
    terminal.expect("type exit to leave")
    terminal.expect(">>>")
    terminal.send("exit\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
