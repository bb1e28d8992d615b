"""`python -m client.webui`: what it asks of the page, and its one-line errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from client.webui.__main__ import main
from protocol.ports import WEBUI_PORT
from tests.client.webui.fake_client import FakeClient


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(server_name, server_port, share) of each launch, which then fails as if the port were taken."""
    pytest.importorskip("gradio")
    calls = []

    def launch(ui: object, *args: object) -> str:
        calls.append(args)
        raise OSError("port taken")

    monkeypatch.setattr("client.webui.page.launch", launch)
    return calls


@pytest.mark.parametrize(("arguments", "launch"), [
    ([], ("127.0.0.1", WEBUI_PORT, False)),
    (["--server-name", "0.0.0.0", "--server_port", "7000", "--share"], ("0.0.0.0", 7000, True)),
])
def test_page_is_for_this_machine_and_has_no_public_link_unless_asked(launches, monkeypatch, arguments, launch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    CliRunner().invoke(main, ["127.0.0.1:1", "internlm", *arguments])
    assert launches == [launch]


@pytest.mark.parametrize(("arguments", "ca"), [([], "no TLS"), (["--tls"], None), (["--tls-ca", __file__], __file__)])
def test_a_server_with_a_certificate_of_its_own_can_be_reached(launches, monkeypatch, arguments, ca):
    given = []
    monkeypatch.setattr("client.webui.__main__.ChatClient",
                        lambda address, api_key, tls, model: given.append(tls) or FakeClient())
    CliRunner().invoke(main, ["https://127.0.0.1:1", "internlm", *arguments])
    assert [tls.ca if tls else "no TLS" for tls in given] == [ca]


def test_taken_port_is_one_line(launches):
    result = CliRunner().invoke(main, ["127.0.0.1:1", "internlm"])
    assert result.exit_code == 1 and result.output.count("\n") == 1 and "--server_port" in result.output


def test_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "client.webui.page", raising=False)
    monkeypatch.setitem(sys.modules, "client.webui.look", None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(main, ["127.0.0.1:1", "internlm"])
    assert result.exit_code == 1 and "pip install -e '.[webui]'" in result.output


def test_client_library_does_not_import_gradio():
    code = "import sys, client, client.webui.__main__; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
