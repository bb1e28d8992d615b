"""The chat command, as a user runs it: one shot, through a pipe, in a terminal, and with wrong input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
ARGUMENTS = [sys.executable, "-m", "backend.chat", "internlm2", str(CHECKPOINT), "--temperature", "0",
             "--max_batch_size", "1"]
ENVIRONMENT = {**os.environ, "TERM": "dumb"}


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


def test_the_log_level_silences_what_is_no_answer():
    result = chat("--prompt", "What is seven plus twelve?", "--log_level", "warning")
    assert result.stdout and result.stderr == ""


def test_a_cut_answer_says_so_beside_it_and_a_full_conversation_how_to_go_on():
    result = chat("--session_len", "60", text="Count from 1 to 60.\n\nWhat is my name?\n\n")
    assert "cut" not in result.stdout
    assert "(cut: session_len is reached; type end to begin a new conversation)" in result.stderr
    assert "exceed session_len=60; " in result.stderr
    assert result.stderr.count("type end to begin a new conversation") == 2


def test_input_that_is_not_utf_8_is_one_line_and_a_failure():
    result = subprocess.run(ARGUMENTS, input=b"caf\xe9\n\n", capture_output=True, timeout=120,
                            env={**ENVIRONMENT, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"})
    assert result.returncode == 1
    assert b"error: the input is not UTF-8 text" in result.stderr and b"Traceback" not in result.stderr


def test_ctrl_c_while_the_model_loads_is_one_word():
    process = subprocess.Popen(ARGUMENTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=ENVIRONMENT)
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():  # it is being imported
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].strip() == "stopped"
    assert process.returncode == 130


@pytest.mark.parametrize(("options", "message"), [
    (["--prompt", " "], "error: --prompt is empty"),
    (["--top_p", "1.5", "--prompt", "hi"], "error: top_p=1.5 is out of range; use a number in (0, 1]"),
    (["--session-len", "0", "--prompt", "hi"], "error: session_len=0 does not work; use an integer >= 1"),
    (["--tp", "3", "--prompt", "hi"], "error: tp=3 does not divide kv_head_num=2"),
    (["--sesion_len", "5"], "No such option"),
    (["--model-format", "awq", "--prompt", "hi"], "is no AWQ checkpoint, its weights are not quantised; use the"),
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
