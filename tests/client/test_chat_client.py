"""ChatClient: addresses, credentials, what the server says of itself, and what the library needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backend.serving.api_keys import ApiKeys
from backend.serving.server_options import ServerOptions
from client import ChatClient, RequestRefusedError, ServerAwayError, Tls
from protocol.ports import GRPC_PORT
from tests.client.fake_chat import SESSION_LEN
from tests.client.fake_server import FakeServer


def test_a_ready_server_says_so_and_one_that_is_away_is_not_ready(server, client):
    assert client.is_ready()
    server.stop()
    assert not client.is_ready()
    with pytest.raises(ServerAwayError, match=f"{server.address} is not available .*start the server"):
        client.session().infer("hello")
    server.start()
    while not client.is_ready():  # found again without a new client
        pass


def test_the_server_says_which_model_it_is_and_how_long_a_session_may_get(client):
    info = client.server_info()
    assert (info.model_name, info.session_len) == ("internlm", SESSION_LEN) and info.version


@pytest.mark.parametrize(("given", "address"), [
    ("gpu-server", f"gpu-server:{GRPC_PORT}"), ("gpu-server:8001", "gpu-server:8001"),
    ("[::1]", f"[::1]:{GRPC_PORT}"), ("[::1]:8001", "[::1]:8001"),
])
def test_the_port_is_the_default_one_where_none_is_given(given, address):
    assert ChatClient(given).address == address


@pytest.mark.parametrize("address", ["ftp://gpu-server", "", "gpu-server/v1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(RequestRefusedError, match="use HOST:33337"):
        ChatClient(address)


def test_each_session_without_an_id_draws_its_own_of_63_bits():
    client = ChatClient("127.0.0.1")
    ids = {client.session().id for _ in range(1000)}
    assert len(ids) == 1000 and all(0 < number < 2**63 for number in ids)
    assert client.session(7).id == 7


def test_the_api_key_opens_the_server_and_a_wrong_one_names_the_option():
    server = FakeServer(ServerOptions(api_keys=ApiKeys.of(["secret"]))).start()
    try:
        with ChatClient(server.address, api_key="secret") as client:
            assert client.session().infer("hello").text == "I heard 1: hello "
        with ChatClient(server.address) as client, pytest.raises(RequestRefusedError, match="api_key"):
            client.session().infer("hello")
    finally:
        server.close()


def test_tls_encrypts_with_an_authority_of_ones_own_and_distrusts_others(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    server = FakeServer(ServerOptions(tls_key=key, tls_cert=certificate)).start()
    try:
        with ChatClient(server.address, tls=Tls(ca=certificate)) as client:
            assert client.session().infer("hello").text == "I heard 1: hello "
        for tls in (None, Tls()):
            with ChatClient(server.address, tls=tls) as client, pytest.raises(ServerAwayError):
                client.session().infer("hello")
    finally:
        server.close()


def test_a_missing_tls_file_is_named(tmp_path):
    with pytest.raises(RequestRefusedError, match=r"ca\.pem cannot be read"):
        ChatClient("127.0.0.1", tls=Tls(ca=tmp_path / "ca.pem"))


def test_the_library_needs_neither_torch_nor_anything_of_backend():
    code = ("import sys, client, client.cli; "
            "sys.exit(any(name.split('.')[0] in ('torch', 'backend', 'transformers') for name in sys.modules))")
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
