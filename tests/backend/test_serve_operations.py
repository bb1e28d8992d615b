"""Operations of the service as it runs: keys and TLS on every port, loading and stuck engines, metrics and logs."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backend.errors import ConfigError
from backend.serve import main
from backend.serving.server_flags import ServeCommand, read_server_flags, server_flags
from backend.serving.server_options import ServerOptions
from terminal.command_line import CONTEXT_SETTINGS
from tests.backend.test_serve import CHECKPOINT, TIMEOUT_S, Service, serve_here, serving

QUESTION = {"model": "internlm2", "temperature": 0,
            "messages": [{"role": "user", "content": "What is 12 plus 30?"}]}


def fetch(url: str, document: dict[str, Any] | None = None, key: str | None = None, context: Any = None,
          **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers in lower case) of whatever answer there is."""
    body = None if document is None else json.dumps(document).encode()
    given = {**headers, "Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, given), timeout=TIMEOUT_S,
                                    context=context) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}


def wait_for_status(url: str, status: int) -> bytes:
    """The body of the first answer with this status; no connection means not yet."""
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        try:
            found, body, _ = fetch(url)
        except (urllib.error.URLError, ConnectionError):
            found, body = 0, b""
        if found == status:
            return body
        time.sleep(0.02)
    raise AssertionError(f"{url} was never {status}")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(key, certificate) of a server on 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], check=True,
                   capture_output=True)
    return key, cert


def server_metadata(service: Service, cert: Path, key: str | None) -> service_pb2.ServerMetadataResponse:
    with grpc.secure_channel(f"127.0.0.1:{service.port}", grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=TIMEOUT_S).live
        return stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=TIMEOUT_S,
                                   metadata=[("authorization", f"Bearer {key}")] if key else [])


def test_keys_and_tls_guard_every_port_and_calls_are_measured_and_logged(tls, tmp_path):
    key, cert = tls
    (tmp_path / "keys").write_text("from-file\n")
    trusted = ssl.create_default_context(cafile=cert)
    options = ["--api-keys", "first", "second", "--api-key-file", str(tmp_path / "keys"), "--ssl", "--log-requests",
               "--log-format", "json"]
    environment = {"SSL_KEYFILE": str(key), "SSL_CERTFILE": str(cert), "MILLRACE_API_KEYS": "from-environment"}
    with serving(CHECKPOINT, "internlm2", *options, environment=environment) as service:
        assert "https://127.0.0.1:" in service.read_until("serving")
        openai, kserve = f"https://127.0.0.1:{service.server_port}", f"https://127.0.0.1:{service.http_port}"
        for path in ("/v1/models", "/metrics", "/openapi.json", "/"):
            assert fetch(openai + path, context=trusted)[0] == 401
        assert fetch(kserve + "/v2", context=trusted)[0] == 401
        with pytest.raises(grpc.RpcError) as refused:
            server_metadata(service, cert, "third")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert fetch(openai + "/health", context=trusted)[0] == 200
        assert fetch(kserve + "/v2/health/ready", context=trusted)[0] == 200
        for known in ("first", "second", "from-file", "from-environment"):
            assert fetch(openai + "/v1/models", key=known, context=trusted)[0] == 200
            assert fetch(kserve + "/v2", key=known, context=trusted)[0] == 200
            assert server_metadata(service, cert, known).name

        status, body, headers = fetch(openai + "/v1/chat/completions", QUESTION, "first", trusted,
                                      **{"X-Request-Id": "mine-1", "X-Millrace-Timing": "1"})
        assert status == 200
        usage = json.loads(body)["usage"]
        assert headers["x-request-id"] == "mine-1"
        phases = dict(part.split("=") for part in headers["x-millrace-timing"].split(", "))
        assert float(phases["prefill"]) > 0 and float(phases["decode"]) > 0 and float(phases["preempted"]) == 0
        for port in (openai, kserve):  # the same metrics at either
            metrics = fetch(port + "/metrics", key="first", context=trusted)[1].decode()
            assert f"millrace_completion_tokens_total {usage['completion_tokens']:.1f}\n" in metrics
            assert f"millrace_prompt_tokens_total {usage['prompt_tokens']:.1f}\n" in metrics
            assert "millrace_time_to_first_token_seconds_count 1.0\n" in metrics
            assert "millrace_engine_healthy 1.0\n" in metrics
        assert service.end(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in service.lines if line.startswith("{")]
        (line,) = [line for line in lines if line.get("request_id") == "mine-1"]
        assert (line["route"], line["status"], line["outcomes"]) == ("/v1/chat/completions", 200, ["stop"])
        assert line["completion_tokens"] == usage["completion_tokens"]
        assert not [line for line in service.lines if line.startswith("INFO")]


def test_a_loading_server_says_so_and_a_stuck_engine_makes_health_fail_until_it_goes_on():
    with serving(CHECKPOINT, "internlm2", "--api", "openai", "--stuck-after", "1") as service:
        url = f"http://127.0.0.1:{service.server_port}/health"
        assert json.loads(wait_for_status(url, 503))["error"]["code"] == "loading"
        wait_for_status(url, 200)
        engine = service.engine()
        engine.send_signal(signal.SIGSTOP)
        assert json.loads(wait_for_status(url, 503))["error"]["code"] == "engine_unavailable"
        engine.send_signal(signal.SIGCONT)
        wait_for_status(url, 200)
        assert service.end(signal.SIGTERM) == 0
        output = "\n".join(service.lines)
        assert "ERROR the engine answered nothing" in output
        assert "engine_process.py" in output  # its stacks
        assert "WARNING the engine goes on" in output


def test_no_file_is_read_because_a_request_names_it():
    with serving(CHECKPOINT, "internlm2", "--api", "openai") as service:
        service.read_until("serving")
        for part in ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                     {"type": "file", "file": {"file_id": "/etc/passwd"}}):
            document = {**QUESTION, "messages": [{"role": "user", "content": [part]}]}
            status, body, _ = fetch(f"http://127.0.0.1:{service.server_port}/v1/chat/completions", document)
            assert status == 400
            assert b"root:" not in body


def flags(*arguments: str) -> ServerOptions:
    """What these options come to, after a model."""
    @click.command(cls=ServeCommand, context_settings=CONTEXT_SETTINGS)
    @click.argument("model_path")
    @click.argument("model_name", required=False)
    @server_flags
    def command(model_path: str, model_name: str | None, **options: Any) -> ServerOptions:
        assert (model_path, model_name) == ("model", None)
        return read_server_flags(options)

    return command.main(["model", *arguments], standalone_mode=False)


@pytest.mark.parametrize("written", [("--api-keys", "a", "b"), ("--api_keys", "a,b"), ("--api-keys=a", "--api-keys=b"),
                                     ("--api-keys", "a", "--api_keys", "b"), ("--api-keys=a,b",)])
def test_several_keys_are_written_as_lmdeploy_does_or_with_commas(written):
    keys = flags(*written).api_keys
    assert keys.lets_in("Bearer a") and keys.lets_in("Bearer b") and not keys.lets_in("Bearer c")


def test_cross_origin_rules_are_off_unless_asked_for():
    assert flags().cross_origin is None
    rules = flags("--allow-origins", "https://a", "https://b", "--allow-methods", "GET").cross_origin
    assert (rules.origins, rules.methods, rules.headers) == (("https://a", "https://b"), ("GET",), ("*",))


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        ask()
    return str(error.value)


def test_half_of_what_tls_needs_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_KEYFILE", raising=False)
    assert "SSL_KEYFILE" in refused(lambda: flags("--ssl"))
    assert "--ssl_certfile" in refused(lambda: flags("--ssl-keyfile", str(tmp_path / "key.pem")))
    assert "cannot be read" in refused(lambda: flags("--ssl-keyfile", str(tmp_path / "key.pem"), "--ssl-certfile",
                                                     str(tmp_path / "cert.pem")))


def test_a_key_that_is_not_the_certificates_is_refused_before_anything_starts(tls, tmp_path):
    key, cert = tls
    files = flags("--ssl-keyfile", str(key), "--ssl-certfile", str(cert))
    assert (files.tls_key, files.tls_cert) == (key, cert)
    assert "are no pair" in refused(lambda: flags("--ssl-keyfile", str(cert), "--ssl-certfile", str(key)))
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", key, "-out", locked], check=True,
                   capture_output=True)
    assert "without a password" in refused(lambda: flags("--ssl-keyfile", str(locked), "--ssl-certfile", str(cert)))


def test_keys_are_refused_where_the_server_would_not_ask_for_them():
    assert "--server embedded" in refused(lambda: serve_here(CHECKPOINT, "--server", "triton", "--api-keys", "a"))
    assert isinstance(main, ServeCommand)


def test_several_processes_serve_one_port_and_their_metrics_are_one():
    with serving(CHECKPOINT, "internlm2", "--http-workers", "2", "--grace", str(TIMEOUT_S)) as service:
        service.read_until("serving")
        url = f"http://127.0.0.1:{service.server_port}"
        num_tokens = 0
        for _ in range(6):
            status, body, _ = fetch(f"{url}/v1/chat/completions", QUESTION)
            assert status == 200
            num_tokens += json.loads(body)["usage"]["completion_tokens"]
        # Grammars are checked in a process that each of them starts for itself.
        status, body, _ = fetch(f"{url}/v1/chat/completions", {**QUESTION, "choice": ["yes", "no"]})
        assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] in ("yes", "no")
        num_tokens += json.loads(body)["usage"]["completion_tokens"]
        # Each call has a connection of its own, and so a process by chance: what one has stored, the others know.
        status, body, _ = fetch(f"{url}/v1/responses", {"model": "internlm2", "input": "My name is Ada."})
        stored = json.loads(body)
        num_tokens += stored["usage"]["output_tokens"]
        found = [json.loads(fetch(f"{url}/v1/responses/{stored['id']}")[1]) for _ in range(8)]
        assert status == 200 and all(each["output"] == stored["output"] for each in found)
        for port in (service.server_port, service.http_port) * 2:
            metrics = fetch(f"http://127.0.0.1:{port}/metrics")[1].decode()
            assert f"millrace_completion_tokens_total {num_tokens:.1f}\n" in metrics
            assert 'millrace_http_responses_total{route="/v1/chat/completions",status="200"} 7.0\n' in metrics
            assert "millrace_engine_healthy 1.0\n" in metrics
        assert len([child for child in psutil.Process(service.process.pid).children() if _is_worker(child)]) == 3
        assert service.end(signal.SIGTERM) == 0
        assert not any("Traceback" in line for line in service.lines)


def test_a_worker_that_dies_ends_the_service_with_one_line():
    with serving(CHECKPOINT, "internlm2", "--api", "openai", "--http-workers", "2") as service:
        service.read_until("serving")
        workers = [child for child in psutil.Process(service.process.pid).children() if _is_worker(child)]
        workers[-1].kill()
        assert service.end() == 1
        assert service.lines[-1].startswith("error: a process of the HTTP server ended")


def _is_worker(process: psutil.Process) -> bool:
    """Of the engine's process, too: what multiprocessing has started for us."""
    return "spawn_main" in str(process.cmdline())
