"""The client's command at a URL: the same terminal chat as over gRPC, whose tests are in test_cli.py."""

from __future__ import annotations

import sys

import pexpect
import pytest

from tests.client.fake_openai import FakeOpenAi
from tests.client.test_cli import ENVIRONMENT, ROOT, run


@pytest.fixture
def server():
    server = FakeOpenAi(api_key="secret").start()
    yield server
    server.close()


def test_one_prompt_is_answered_and_nothing_else_is_printed(server):
    result = run(server.url, "--prompt", "hello", "--top-p", "0.5", "--api-key", "secret", "--session-id", "9")
    assert (result.returncode, result.stdout, result.stderr) == (0, "I heard 1: hello \n", "")
    assert server.requests[-1]["top_p"] == 0.5 and "temperature" not in server.requests[-1]


def test_a_piped_conversation_goes_on_until_it_is_ended(server):
    result = run(server.url, "internlm", "--api_key", "secret",
                 text="one\n\ntwo\n\nbusy\n\nend\nthree\n\nexit\nnever read\n\n")
    assert result.stdout.splitlines() == [
        "I heard 1: one ", "I heard 2: two ", "(the conversation is forgotten)", "I heard 1: three "]
    assert result.stderr == f"error: {server.url} cannot answer now (the queue is full); wait, and ask again\n"


def test_another_model_than_the_one_expected_is_said(server):
    result = run(server.url, "qwen", "--prompt", "hello", "--api_key", "secret")
    assert result.returncode == 0 and "(this server's model is internlm, not qwen)" in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["http://127.0.0.1:9"], "error: http://127.0.0.1:9 is not available"),
    (["URL", "--api_key", "wrong"], "wants another api_key (Incorrect API key provided)"),
    (["URL", "--api_key", "secret", "--tls"], "is not encrypted; use https://"),
    (["URL", "--api_key", "secret", "--prompt", "wrong"], "error: top_k=-1 is out of range"),
])
def test_wrong_input_is_one_line_and_a_failure(server, arguments, message):
    result = run(*(server.url if argument == "URL" else argument for argument in arguments))
    assert result.returncode == 1 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def terminal(server):
    process = pexpect.spawn(sys.executable, ["-m", "client", server.url], cwd=ROOT, encoding="utf-8", timeout=15,
                            env={**ENVIRONMENT, "MILLRACE_API_KEY": "secret"})
    process.expect("double enter to end input >>>")
    yield process
    process.close(force=True)


@pytest.mark.parametrize("question", ["forever", "late"])
def test_ctrl_c_ends_the_answer_on_the_server_and_the_conversation_goes_on(terminal, server, question):
    terminal.send(f"{question}\r\r")
    if question == "forever":
        terminal.expect("on on on")
    else:
        while not server.num_running:
            terminal.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=0.05)
    terminal.sendintr()
    terminal.expect(r"\(stopped\)")
    terminal.expect(">>>")
    terminal.send("again\r\r")
    terminal.expect("I heard 2: again")
    terminal.expect(">>>")
    assert server.num_running == 0
    terminal.send("exit\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_a_server_that_restarts_needs_no_telling(terminal, server):
    terminal.send("one\r\r")
    terminal.expect("I heard 1: one")
    server.stop()
    server.start()
    terminal.expect(">>>")
    terminal.send("two\r\r")
    terminal.expect("I heard 2: two")
