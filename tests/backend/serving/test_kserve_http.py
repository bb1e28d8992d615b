"""KServe v2 over HTTP and Triton's generate extension, on the embedded server and on the real one."""

from __future__ import annotations

import http.client
import json
import socket
import time

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from backend.errors import ConfigError
from backend.serving.api_keys import ApiKeys
from backend.serving.kserve_http import HttpServer
from backend.serving.model_repository import ModelRepository
from backend.serving.server_options import ServerOptions
from tests.backend.serving.embedded_harness import start_embedded, write_configs
from tests.backend.serving.stub_models import CONFIGS, models

ANSWER_TIMEOUT_S = 10.0


@pytest.fixture
def http_client(server):
    with triton.InferenceServerClient(server.http_url) as connected:
        yield connected


def ask(url: str, path: str, document: object = None, headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
    """(status, content type, body); POST where there is a document, which is sent as JSON unless it is bytes."""
    connection = http.client.HTTPConnection(url, timeout=ANSWER_TIMEOUT_S)
    body = document if isinstance(document, bytes) else None if document is None else json.dumps(document)
    connection.request("GET" if document is None else "POST", path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.getheader("Content-Type", ""), response.read()
    connection.close()
    return answer


def events(body: bytes) -> list[dict]:
    return [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n\n") if line]


def inputs(binary: bool) -> list[triton.InferInput]:
    made = []
    for name, datatype, array in (("TEXT", "BYTES", np.array(["ø你".encode(), b""], object)),
                                  ("N", "INT32", np.array([-7], np.int32)),
                                  ("TEMP", "FP32", np.array([0.5], np.float32))):
        tensor = triton.InferInput(name, list(array.shape), datatype)
        made.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return made


def test_health_and_readiness(http_client):
    assert http_client.is_server_live() and http_client.is_server_ready()
    assert http_client.is_model_ready("echo") and not http_client.is_model_ready("nope")


def test_metadata_config_statistics_and_index_are_json_with_plain_numbers(http_client):
    metadata = http_client.get_model_metadata("batched")
    assert {"name": "SEED", "datatype": "UINT64", "shape": [-1, 1]} in metadata["inputs"]
    config = http_client.get_model_config("decoupled")
    assert config["max_batch_size"] == 0 and config["model_transaction_policy"] == {"decoupled": True}
    assert config["input"][1]["dims"] == [1] and config["input"][1]["data_type"] == "TYPE_INT32"
    statistics = http_client.get_inference_statistics("echo")["model_stats"][0]
    assert statistics["inference_stats"]["success"]["count"] == statistics["inference_count"]
    assert {"name": "echo", "version": "1", "state": "READY"}.items() <= {
        each["name"]: each for each in http_client.get_model_repository_index()}["echo"].items()


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_tensors_arrive_and_come_back_as_bytes_and_as_json(http_client, binary_input, binary_output):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in ("TEXT", "N", "TEMP")]
    result = http_client.infer("echo", inputs(binary_input), outputs=outputs, request_id="mine")
    texts = [text if isinstance(text, str) else text.decode() for text in result.as_numpy("TEXT")]
    assert (texts, result.as_numpy("N").tolist(), result.as_numpy("TEMP").tolist()) == (["ø你", ""], [-7], [0.5])
    assert result.get_response()["id"] == "mine"


def test_all_outputs_come_back_when_none_is_named(http_client):
    result = http_client.infer("echo", inputs(True))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["TEXT", "N", "TEMP"]


@pytest.mark.parametrize(("path", "document", "status", "phrase"), [
    ("models/nope/infer", {"inputs": []}, 404, "Request for unknown model: 'nope' is not found"),
    ("models/echo/versions/7/infer", {"inputs": []}, 404, "'echo' version 7 is not found"),
    ("models/echo/infer", {"inputs": []}, 400, "missing required input(s) ['TEXT']"),
    ("models/echo/infer", {"inputs": [{"name": "TEXT", "datatype": "INT32", "shape": [1], "data": [1]}]}, 400,
     "data-type is 'INT32', but model 'echo' expects 'BYTES'"),
    ("models/echo/infer", {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
                           "outputs": [{"name": "NOPE"}]}, 400, "unexpected inference output 'NOPE'"),
    ("models/fail/infer", {"inputs": [{"name": "ERROR", "datatype": "BYTES", "shape": [1], "data": ["RequestError"]}]},
     400, "a RequestError on purpose"),
    ("models/fail/infer", {"inputs": [{"name": "ERROR", "datatype": "BYTES", "shape": [1], "data": ["bug"]}]},
     500, "ZeroDivisionError: a bug on purpose"),
    ("models/nope/generate", {"TEXT": "a"}, 404, "'nope'"),
    ("repository/models/echo/load", {}, 503, "explicit model load / unload is not allowed")])
def test_an_error_is_json_with_the_code_of_its_kind(server, path, document, status, phrase):
    answer = ask(server.http_url, f"/v2/{path}", document)
    assert answer[0] == status, answer
    assert phrase in json.loads(answer[2])["error"]


def test_decoupled_models_are_not_for_infer(http_client):
    with pytest.raises(InferenceServerException, match="doesn't support models with decoupled transaction policy"):
        http_client.infer("decoupled", inputs(True)[:1])


def test_generate_takes_inputs_by_name_and_gives_outputs_by_name(server):
    status, content_type, body = ask(server.http_url, "/v2/models/echo/generate", {"TEXT": "hi", "N": 3, "TEMP": 0.5})
    assert (status, content_type.split(";")[0]) == (200, "application/json")
    assert json.loads(body) == {"model_name": "echo", "model_version": "1", "TEXT": "hi", "N": 3, "TEMP": 0.5}


def test_generate_refuses_a_model_with_many_responses(embedded):
    """The real server says so, too, but with status 200."""
    status, _, body = ask(embedded.http_url, "/v2/models/decoupled/generate", {"PROMPT": "x", "MAX_TOKENS": 2})
    assert status == 400 and "exactly 1 response" in json.loads(body)["error"]


def test_generate_stream_sends_an_event_per_response(server):
    status, content_type, body = ask(server.http_url, "/v2/models/decoupled/generate_stream",
                                     {"PROMPT": "x", "MAX_TOKENS": 3})
    assert (status, content_type.split(";")[0]) == (200, "text/event-stream")
    assert [event["TOKEN"] for event in events(body)] == ["t0", "t1", "t2"]


def test_generate_stream_ends_with_an_errors_event(server):
    _, _, body = ask(server.http_url, "/v2/models/decoupled/generate_stream",
                     {"PROMPT": "x", "MAX_TOKENS": 1, "ERROR": "RequestError"})
    assert [event.get("TOKEN", event.get("error")) for event in events(body)] == ["t0", "a RequestError on purpose"]


def test_generate_stream_that_fails_at_once_has_the_errors_status(embedded):
    status, _, body = ask(embedded.http_url, "/v2/models/decoupled/generate_stream",
                          {"PROMPT": "x", "MAX_TOKENS": 0, "ERROR": "CapacityError"})
    assert (status, json.loads(body)) == (429, {"error": "a CapacityError on purpose"})


@pytest.mark.parametrize(("path", "document"), [
    ("decoupled/generate_stream", {"PROMPT": "x", "MAX_TOKENS": 10_000, "PAUSE_S": 0.02}),
    ("decoupled/generate_stream", {"PROMPT": "x", "MAX_TOKENS": 1, "PAUSE_S": 60})])
def test_a_client_that_leaves_ends_its_request(embedded, path, document):
    decoupled = embedded.models["decoupled"]
    body = json.dumps(document).encode()
    with socket.create_connection((f"{embedded.http_url}".split(":")[0], embedded.http_port)) as connection:
        connection.sendall(f"POST /v2/models/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                           + body)
        wait_until(lambda: decoupled.num_running == 1)
    wait_until(lambda: decoupled.num_running == 0)


@pytest.mark.parametrize("document", [
    {"inputs": 1}, {"inputs": [1]}, {"inputs": [{"name": 1}]}, {"inputs": [{"name": "TEXT", "datatype": "BYTES"}]},
    {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": ["x"], "data": ["a"]}]},
    {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1]}]},
    {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": [1]}]},
    {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]},
    {"inputs": [{"name": "N", "datatype": "INT32", "shape": [1], "data": [2**40]}]},
    {"inputs": [], "parameters": {"a": None}}, {"id": 5}, [], "x", b"{", b"\xff",
    b"[" * 100_000])
def test_json_of_the_wrong_form_is_a_400_that_says_what(embedded, document):
    status, _, body = ask(embedded.http_url, "/v2/models/echo/infer", document)
    assert status == 400 and json.loads(body)["error"]


@pytest.mark.parametrize(("path", "document"), [
    ("infer", {"id": "\ud800", "inputs": []}),
    ("infer", {"inputs": [{"name": "\ud800", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}),
    ("infer", {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["\ud800"]}]}),
    ("infer", {"inputs": [], "outputs": [{"name": "\ud800"}]}), ("infer", {"inputs": [], "parameters": {"\ud800": 1}}),
    ("generate", {"TEXT": "a", "id": "\ud800"}), ("generate", {"TEXT": "a", "\ud800": 1}),
    ("generate", {"TEXT": "a", "x": "\ud800"}), ("generate", {"TEXT": "\ud800"})])
def test_a_lone_surrogate_is_a_400_wherever_it_stands(embedded, path, document):
    status, _, body = ask(embedded.http_url, f"/v2/models/echo/{path}", document)
    assert status == 400 and "lone surrogate" in json.loads(body)["error"]


@pytest.mark.parametrize("length", ["x", "-1", "99999"])
def test_a_wrong_length_of_the_json_part_is_a_400(embedded, length):
    status, _, body = ask(embedded.http_url, "/v2/models/echo/infer", {"inputs": []},
                          {"Inference-Header-Content-Length": length})
    assert status == 400 and "Inference-Header-Content-Length" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/logging", "/v2/systemsharedmemory/status"])
def test_what_the_server_does_not_have_it_says(embedded, path):
    status, _, body = ask(embedded.http_url, path)
    assert status == 501 and "not supported by this server" in json.loads(body)["error"]


def test_keys_and_limits_are_those_of_the_options(tmp_path):
    options = ServerOptions(api_keys=ApiKeys.of(["secret"]), max_body_bytes=1000)
    with start_embedded(write_configs(tmp_path, CONFIGS), models(), options) as server:
        assert ask(server.http_url, "/v2/health/live")[0] == 200
        assert ask(server.http_url, "/v2")[0] == 401
        key = {"Authorization": "Bearer secret"}
        assert json.loads(ask(server.http_url, "/v2", headers=key)[2])["name"] == "millrace"
        status, _, body = ask(server.http_url, "/v2/models/echo/generate", {"TEXT": "a" * 2000}, key)
        assert status == 400 and "longer than 1000 bytes" in json.loads(body)["error"]


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path):
    with start_embedded(write_configs(tmp_path, CONFIGS), models(), ServerOptions(body_timeout_s=0.5)) as server, \
            socket.create_connection(("127.0.0.1", server.http_port), timeout=ANSWER_TIMEOUT_S) as connection:
        connection.sendall(b"POST /v2/models/echo/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        answer = b""
        while part := connection.recv(4096):  # to its end: what would come of the body is not the next call
            answer += part
    assert answer.startswith(b"HTTP/1.1 504 ") and b"within 0.5 s" in answer


def test_stopping_ends_what_runs_and_closes_the_port(tmp_path):
    with start_embedded(write_configs(tmp_path, CONFIGS), models()) as server:
        server.run(server.http.stop(grace_s=0.1))
        with pytest.raises(ConnectionRefusedError):
            ask(server.http_url, "/v2")


def test_a_port_that_is_taken_is_one_clear_error(embedded, tmp_path):
    async def start() -> int:
        repository = ModelRepository(models(), write_configs(tmp_path, CONFIGS))
        return await HttpServer(repository).start("127.0.0.1", embedded.http_port)

    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{embedded.http_port} \(Address already in use"):
        embedded.run(start())


def wait_until(is_so) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
