"""The adapter inside the real Triton Inference Server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.backend.serving.adapter_models import CONFIGS
from tests.backend.serving.triton_harness import ROOT, TritonServer, start_triton, write_repository

ANSWER_TIMEOUT_S = 10.0
real_triton = pytest.mark.real_triton


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = write_repository(tmp_path_factory.mktemp("models"), CONFIGS, "tests.backend.serving.adapter_models",
                                  "models")
    with start_triton(repository) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture
def raw(client: triton.InferenceServerClient) -> service_pb2_grpc.GRPCInferenceServiceStub:
    """The stub itself: it shows messages and metadata that the client's functions hide."""
    return client._client_stub


def tensor(name: str, value: object, data_type: str) -> triton.InferInput:
    array = np.array(value, triton_to_np_dtype(data_type))
    made = triton.InferInput(name, list(array.shape), data_type)
    made.set_data_from_numpy(array)
    return made


def count(number: int, request_id: str = "", **options: object) -> service_pb2.ModelInferRequest:
    """A request to `counter` that asks for the empty final response; options are its further inputs."""
    request = service_pb2.ModelInferRequest(model_name="counter", id=request_id)
    inputs = [tensor("COUNT", [[number]], "UINT32")]
    if "error" in options:
        inputs.append(tensor("ERROR", [[options["error"].encode()]], "BYTES"))
    if "pause_s" in options:
        inputs.append(tensor("PAUSE_S", [[options["pause_s"]]], "FP32"))
    for each in inputs:
        request.inputs.append(each._get_tensor())
        request.raw_input_contents.append(each._get_content())
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def is_final(response: service_pb2.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param


def number_of_closed(raw: service_pb2_grpc.GRPCInferenceServiceStub) -> int:
    first, _ = list(raw.ModelStreamInfer(iter([count(1)])))  # to its end: see "abandoned streams" in docs/kserve.md
    return int.from_bytes(first.infer_response.raw_output_contents[1], "little")


def test_the_models_of_a_workspace_import_no_torch():
    """What it needs of the server's own Python is one module, which stands in here as an empty one."""
    code = ("import sys, types; utils = types.ModuleType('utils'); utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1; "
            "sys.modules['triton_python_backend_utils'] = utils; import backend.serving.workspace_model; "
            "sys.exit(bool({'torch', 'transformers', 'triton', 'tritonclient'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@real_triton
def test_tensors_of_every_used_type_arrive_and_come_back(client):
    texts = np.array([["ø 你好".encode(), b"", b"\x00\xff"]], object)
    result = client.infer("mirror", [
        tensor("TEXT", texts, "BYTES"), tensor("IDS", [[1, 2**32 - 1, 3]], "UINT32"),
        tensor("SEED", [[2**64 - 1]], "UINT64"), tensor("IS_SET", [[True]], "BOOL")])
    assert result.as_numpy("TEXT").tolist() == texts.tolist()
    assert result.as_numpy("IDS").tolist() == [[1, 2**32 - 1, 3]]
    assert result.as_numpy("SEED").tolist() == [[2**64 - 1]]
    assert result.as_numpy("IS_SET").tolist() == [[True]]


@real_triton
@pytest.mark.parametrize(("timeout_us", "seconds"), [(None, -1.0), (0, -1.0), (2_500_000, 2.5), (-5, -1.0)])
def test_the_model_learns_request_id_and_timeout(client, timeout_us, seconds):
    result = client.infer("mirror", [tensor("TEXT", [[b"x"]], "BYTES")], request_id="mine", timeout=timeout_us)
    assert result.as_numpy("ID").item() == b"mine"
    assert result.as_numpy("TIMEOUT_S").item() == seconds


@real_triton
def test_an_answer_that_takes_longer_than_the_requests_timeout_is_ended(client):
    inputs = [tensor("TEXT", [[b"x"]], "BYTES"), tensor("PAUSE_S", [[60.0]], "FP32")]
    with pytest.raises(InferenceServerException, match=r"request's timeout of 0\.2 s") as failure:
        client.infer("mirror", inputs, timeout=200_000)
    assert failure.value.status() == "StatusCode.CANCELLED"  # Triton's codes have no DEADLINE_EXCEEDED


@real_triton
def test_only_the_requested_outputs_are_sent(client):
    result = client.infer("mirror", [tensor("TEXT", [[b"x"]], "BYTES")], outputs=[triton.InferRequestedOutput("ID")])
    assert [output.name for output in result.get_response().outputs] == ["ID"]


@real_triton
def test_requests_to_one_model_run_side_by_side(client):
    inputs = [tensor("TEXT", [[b"x"]], "BYTES"), tensor("PAUSE_S", [[1.0]], "FP32")]
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.infer("mirror", inputs), range(8)))
    assert time.monotonic() - begin < 4.0  # one after the other: 8 s


@real_triton
def test_a_required_input_that_is_missing_beside_an_optional_one_is_named(client):
    with pytest.raises(InferenceServerException, match=r"missing required input\(s\) \['TEXT'\]") as failure:
        client.infer("mirror", [tensor("IDS", [[1]], "UINT32")])
    assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"


@real_triton
def test_a_stream_ends_with_an_empty_final_response(raw):
    responses = [each.infer_response for each in raw.ModelStreamInfer(iter([count(3, "a")]))]
    assert [is_final(each) for each in responses] == [False, False, False, True]
    assert [int.from_bytes(each.raw_output_contents[0], "little") for each in responses[:3]] == [0, 1, 2]
    assert {each.id for each in responses} == {"a"} and not responses[3].outputs


@real_triton
def test_many_streams_at_once_each_get_their_own_numbers_in_order(raw):
    def numbers(length: int) -> list[int]:
        return [int.from_bytes(each.infer_response.raw_output_contents[0], "little")
                for each in raw.ModelStreamInfer(iter([count(length)])) if not is_final(each.infer_response)]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(numbers, range(20, 36))) == [list(range(length)) for length in range(20, 36)]


@real_triton
@pytest.mark.parametrize(("error", "status"), [
    ("RequestError", "INVALID_ARGUMENT"), ("SessionError", "INVALID_ARGUMENT"), ("CapacityError", "UNAVAILABLE"),
    ("EngineDeadError", "UNAVAILABLE"), ("DeadlineError", "CANCELLED"), ("SurprisingError", "INTERNAL")])
def test_an_error_of_the_model_is_answered_with_its_status_and_harms_nobody(raw, client, error, status):
    """Asked for `triton_grpc_error`, because only then a stream shows the code; this also is what can crash it."""
    stream = raw.ModelStreamInfer(iter([count(1, error=error)]), metadata=[("triton_grpc_error", "true")])
    with pytest.raises(Exception, match=f"a {error} on purpose") as failure:
        list(stream)
    assert failure.value.code().name == status
    responses = list(raw.ModelStreamInfer(iter([count(1, error=error), count(2)])))
    assert [each.error_message for each in responses if each.error_message] == [
        f"a {error} on purpose" if status != "INTERNAL" else f"ValueError: a {error} on purpose"]
    assert sum(is_final(each.infer_response) for each in responses) == 2
    assert client.is_server_live()


@real_triton
def test_a_client_that_cancels_closes_the_models_generator(raw):
    before = number_of_closed(raw)
    stream = raw.ModelStreamInfer(iter([count(10_000, pause_s=0.02)]))
    next(iter(stream))
    stream.cancel()
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while number_of_closed(raw) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@real_triton
def test_a_client_that_is_gone_closes_the_models_generator(server, raw):
    before = number_of_closed(raw)
    code = ("import queue, sys; sys.path.insert(0, sys.argv[2]); import tritonclient.grpc as triton; "
            "from tests.backend.serving.test_tritonserver import count; "
            "client = triton.InferenceServerClient(sys.argv[1]); "
            "stream = client._client_stub.ModelStreamInfer(iter([count(10_000, pause_s=0.02)])); "
            "next(iter(stream)); print('started', flush=True); queue.Queue().get()")
    with subprocess.Popen([sys.executable, "-c", code, server.grpc_url, str(ROOT)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        process.kill()
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while number_of_closed(raw) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@real_triton
def test_a_model_that_cannot_be_opened_says_why(tmp_path):
    repository = write_repository(tmp_path, {"mirror": CONFIGS["mirror"]}, "tests.backend.serving.adapter_models",
                                  "models")
    file: Path = repository / "mirror/1/model.py"
    file.write_text(file.read_text().replace('[args["model_name"]]', '["nobody"]'))
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"), start_triton(repository):
        pass
