"""The client's command, as a user runs it: one shot, through a pipe, in a terminal, and with wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "TERM": "dumb"}


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "client", *arguments], input=text, capture_output=True, text=True,
                          timeout=30, env=ENVIRONMENT, cwd=ROOT)


def test_one_prompt_is_answered_and_nothing_else_is_printed(server):
    result = run(server.address, "internlm", "--prompt", "hello", "--top-p", "0.5", "--max_new_tokens", "7",
                 "--session_id", "9")
    assert (result.returncode, result.stdout, result.stderr) == (0, "I heard 1: hello \n", "")
    asked, ended = server.chat.requests
    assert (asked["TOP_P"], asked["MAX_NEW_TOKENS"], asked["CORRID"]) == (0.5, 7, 9)
    assert "TEMPERATURE" not in asked and "IGNORE_EOS" not in asked
    assert ended["END"] == 1 and server.chat.sessions == {}


def test_a_piped_conversation_goes_on_until_it_is_ended(server):
    result = run(server.address, "internlm", text="one\n\ntwo\n\nend\nthree\n\nexit\nnever read\n\n")
    assert result.stdout.splitlines() == [
        "I heard 1: one ", "I heard 2: two ", "(the conversation is forgotten)", "I heard 1: three "]
    assert server.chat.sessions == {}


def test_another_model_than_the_one_expected_is_said(server):
    result = run(server.address, "qwen", "--prompt", "hello")
    assert result.returncode == 0 and "(this server's model is internlm, not qwen)" in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["127.0.0.1:9", "internlm"], "error: 127.0.0.1:9 is not available"),
    (["ftp://127.0.0.1", "internlm"],
     "error: 'ftp://127.0.0.1' is no address; use HOST:33337 for gRPC, or http://HOST:23333"),
    (["127.0.0.1:9", "--sesion_id", "1"], "No such option"),
    (["127.0.0.1:9", "--session_id", "0"], "Invalid value"),
])
def test_wrong_input_is_one_line_and_a_failure(arguments, message):
    result = run(*arguments)
    assert result.returncode != 0 and result.stdout == ""
    assert message in result.stderr and "Traceback" not in result.stderr


def test_a_refused_value_is_one_line_and_a_failure(server):
    result = run(server.address, "--prompt", "hello", "--top_k", "-1")
    assert result.returncode == 1 and result.stderr.startswith("error: top_k=-1 cannot be sent as UINT32")


@pytest.fixture
def terminal(server):
    process = pexpect.spawn(sys.executable, ["-m", "client", server.address, "internlm"], env=ENVIRONMENT,
                            encoding="utf-8", timeout=15, cwd=ROOT)
    process.expect("double enter to end input >>>")
    yield process
    process.close(force=True)


def test_double_enter_sends_a_message_of_several_lines(terminal, server):
    terminal.send("hello\rthere\r\r")
    terminal.expect("I heard 1: hello there")
    terminal.expect(">>>")
    assert "hello\\nthere" in server.chat.requests[-1]["MESSAGES"]


def test_ctrl_c_cancels_the_answer_on_the_server_and_the_conversation_goes_on(terminal, server):
    terminal.send("forever\r\r")
    terminal.expect("on on on")
    terminal.sendintr()
    terminal.expect(r"\(stopped\)")
    terminal.expect(">>>")
    assert server.chat.running == {}
    terminal.send("again\r\r")
    terminal.expect("I heard 2: again")


def test_a_server_that_restarts_is_told_the_conversation_again(terminal, server):
    terminal.send("one\r\r")
    terminal.expect("I heard 1: one")
    terminal.expect(">>>")
    server.restart()
    terminal.send("two\r\r")
    terminal.expect("forgotten the conversation; it is told again")
    terminal.expect("I heard 2: two")


def test_a_server_that_is_away_costs_one_line_and_can_be_asked_again(terminal, server):
    server.stop()
    terminal.send("one\r\r")
    terminal.expect("error: .* is not available")
    terminal.expect(">>>")
    server.start()
    while True:
        terminal.send("\x1b[A\r\r")  # arrow up brings the message back
        if terminal.expect(["I heard 1: one", "is not available"]) == 0:
            break
        terminal.expect(">>>")


def test_exit_ends_the_session_on_the_server(terminal, server):
    terminal.send("one\r\r")
    terminal.expect("I heard 1: one")
    terminal.expect(">>>")
    terminal.send("exit\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0 and server.chat.sessions == {}
