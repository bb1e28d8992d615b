"""The KServe v2 gRPC service as clients use it, on the embedded server and on the real one."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.backend.serving.infer_messages import (
    request,
    set_parameter,
    shown,
    slow_request,
    stream_request,
    strings,
    text,
)
from tests.backend.serving.triton_harness import ROOT

# The real server can die of a client that leaves its stream (docs/kserve.md), so such tests are the embedded server's.
embedded_only = pytest.mark.parametrize("server_name", ["embedded"], indirect=True)

ANSWER_TIMEOUT_S = 10.0
END = "end!"


def stream(stub, *messages, **options) -> list[str]:
    return [shown(answer) for answer in stub.ModelStreamInfer(iter(messages), timeout=ANSWER_TIMEOUT_S, **options)]


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def wait_until_nothing_runs(stub) -> None:
    """Until the only request with the model is the one that asks."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        first = next(iter(stub.ModelStreamInfer(iter([stream_request(1)]), timeout=ANSWER_TIMEOUT_S)))
        if int.from_bytes(first.infer_response.raw_output_contents[2], "little") == 1:
            return
        assert time.monotonic() < deadline, "a request that its client left is still with the model"
        time.sleep(0.02)


def test_server_and_models_are_live_and_ready(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("echo") and client.is_model_ready("echo", "1")
    assert not client.is_model_ready("nope") and not client.is_model_ready("echo", "7")
    with pytest.raises(InferenceServerException, match="version string 'x'"):
        client.is_model_ready("echo", "x")


def test_health_service_of_grpc_is_served(server):
    with grpc.insecure_channel(server.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=ANSWER_TIMEOUT_S) == b"\x08\x01"  # status: SERVING


def test_metadata_shows_names_datatypes_and_wire_shapes(client):
    metadata = client.get_model_metadata("batched")
    assert (metadata.platform, list(metadata.versions)) == ("python", ["1"])
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("IDS", "UINT32", [-1, -1]), ("SEED", "UINT64", [-1, 1]), ("IS_SET", "BOOL", [-1, 1]),
        ("SMALL", "INT8", [-1, 2, -1]), ("HALF", "FP16", [-1, 1])]
    assert client.get_server_metadata().name in ("millrace", "triton")


def test_model_config_is_the_file_with_the_defaults_filled_in(client):
    config = client.get_model_config("decoupled").config
    assert config.model_transaction_policy.decoupled
    assert config.default_model_filename == "model.py"
    assert config.version_policy.latest.num_versions == 1
    assert [tensor.name for tensor in config.input] == ["PROMPT", "MAX_TOKENS", "PAUSE_S", "ERROR"]


def test_repository_index_lists_each_model_as_ready(client):
    index = client.get_model_repository_index()
    assert {each.name: each.state for each in index.models} == dict.fromkeys(
        ["echo", "batched", "decoupled", "fail", "slow"], "READY")


def test_models_are_not_loaded_or_unloaded_on_request(client):
    for act in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed") as failure:
            act("echo")
        assert failure.value.status() == "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize(("name", "version", "text"), [
    ("nope", "", "requested model 'nope' is not available"),
    ("echo", "7", "requested model version is not available for model 'echo'")])
def test_statistics_of_an_unknown_model_are_an_error(client, name, version, text):
    with pytest.raises(InferenceServerException, match=text) as failure:
        client.get_inference_statistics(name, version)
    assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_statistics_count_successes(client, stub):
    def count() -> int:
        return client.get_inference_statistics("slow").model_stats[0].inference_stats.success.count

    before = count()
    stub.ModelInfer(slow_request(0.01), timeout=ANSWER_TIMEOUT_S)
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while count() == before:  # the real server counts after it has answered
        assert time.monotonic() < deadline
    assert count() == before + 1


def test_unary_response_has_the_id_the_version_and_no_parameters(stub):
    response = stub.ModelInfer(request("echo", text("ø你".encode(), b"", b"\xff\0"), request_id="mine"),
                               timeout=ANSWER_TIMEOUT_S)
    assert (response.model_name, response.model_version, response.id) == ("echo", "1", "mine")
    assert not response.parameters
    assert list(response.raw_output_contents) == [strings("ø你".encode(), b"", b"\xff\0")]
    assert list(response.outputs[0].shape) == [3]


def test_tensors_of_each_type_arrive_and_come_back(client):
    sent = {"IDS": (np.array([[0, 2**32 - 1, 7]], np.uint32), "UINT32"),
            "SEED": (np.array([[2**64 - 1]], np.uint64), "UINT64"),
            "IS_SET": (np.array([[True]]), "BOOL"), "SMALL": (np.array([[[-128, 127], [0, 1]]], np.int8), "INT8"),
            "HALF": (np.array([[1.5]], np.float16), "FP16")}
    result = client.infer("batched", [tensor(name, *value) for name, value in sent.items()])
    for name, (array, _) in sent.items():
        np.testing.assert_array_equal(result.as_numpy(name), array)


def test_only_requested_outputs_come_back_in_the_models_order(client):
    inputs = [tensor("TEXT", np.array([b"a"], object), "BYTES"), tensor("N", np.array([3], np.int32), "INT32"),
              tensor("TEMP", np.array([0.5], np.float32), "FP32")]
    result = client.infer("echo", inputs, outputs=[triton.InferRequestedOutput(name) for name in ("TEMP", "TEXT")])
    assert [output.name for output in result.get_response().outputs] == ["TEXT", "TEMP"]


@pytest.mark.parametrize(("count", "empty_final", "shown_as"), [
    (3, True, ["t0", "t1", "t2", END]), (3, False, ["t0", "t1", "t2"]), (0, True, [END]), (0, False, [])])
def test_decoupled_answers_end_with_an_empty_final_response_when_asked_for(stub, count, empty_final, shown_as):
    message = stream_request(count, empty_final=empty_final)
    if empty_final:
        assert stream(stub, message) == shown_as
    else:
        answers = list(stub.ModelStreamInfer(iter([message]), timeout=ANSWER_TIMEOUT_S))
        assert [shown(answer) for answer in answers if answer.infer_response.outputs] == shown_as


def test_empty_final_response_has_no_version_and_data_has_final_false(stub):
    data, end = stub.ModelStreamInfer(iter([stream_request(1, "r")]), timeout=ANSWER_TIMEOUT_S)
    assert (data.infer_response.id, data.infer_response.model_version) == ("r", "1")
    assert not data.infer_response.parameters["triton_final_response"].bool_param
    assert (end.infer_response.id, end.infer_response.model_name, end.infer_response.model_version) == (
        "r", "decoupled", "")


def test_model_that_is_not_decoupled_answers_a_stream_with_one_final_response(stub):
    assert stream(stub, request("echo", text(b"a")), request("echo", text(b"b"))) == ["a!", "b!"]


def test_models_that_are_not_decoupled_answer_in_the_order_of_their_requests(stub):
    answers = stub.ModelStreamInfer(iter([slow_request(0.2, request_id="1"), slow_request(0.01, request_id="2"),
                                          request("echo", text(b"a"), request_id="3")]), timeout=ANSWER_TIMEOUT_S)
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3"]


def test_requests_on_one_stream_are_answered_side_by_side(stub):
    messages = [stream_request(5, str(number), pause_s=0.05) for number in range(8)]
    begin = time.monotonic()
    answers = list(stub.ModelStreamInfer(iter(messages), timeout=ANSWER_TIMEOUT_S))
    assert time.monotonic() - begin < 8 * 5 * 0.05 * 0.75
    for number in range(8):
        own = [shown(answer) for answer in answers if answer.infer_response.id == str(number)]
        assert own == ["t0", "t1", "t2", "t3", "t4", END]


def test_one_id_may_be_in_flight_twice(stub):
    assert sorted(stream(stub, stream_request(2, "a"), stream_request(2, "a"))) == sorted(["t0", "t1", END] * 2)


def test_an_error_of_the_model_is_the_requests_last_message_and_the_stream_lives_on(stub):
    answers = stream(stub, stream_request(1, error=b"RequestError", empty_final=False))
    assert answers == ["t0", "error: a RequestError on purpose!"]
    mixed = stream(stub, stream_request(1, error=b"bug"), stream_request(2))
    assert sorted(mixed) == sorted(["t0", "error: ZeroDivisionError: a bug on purpose!", "t0", "t1", END])


def test_triton_grpc_error_leaves_requests_that_reached_no_model_as_messages(stub):
    """With an error of a model the real server crashes (24.10), so that is tested in test_kserve_grpc.py."""
    assert stream(stub, request("nope"), metadata=[("triton_grpc_error", "true")]) == [
        "error: Request for unknown model: 'nope' is not found"]


@embedded_only
def test_a_client_that_cancels_ends_its_requests_at_once(stub):
    answers = stub.ModelStreamInfer(iter([stream_request(10_000, str(number), pause_s=0.02) for number in range(3)]))
    next(answers)
    answers.cancel()
    wait_until_nothing_runs(stub)


@embedded_only
def test_a_client_whose_deadline_passes_ends_its_request(stub):
    answers = stub.ModelStreamInfer(iter([stream_request(10_000, pause_s=0.02)]), timeout=0.2)
    with pytest.raises(grpc.RpcError) as failure:
        list(answers)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until_nothing_runs(stub)


@embedded_only
def test_a_client_that_dies_ends_its_request(server, stub):
    code = ("import queue, sys; sys.path.insert(0, sys.argv[2]); import grpc; "
            "from tritonclient.grpc import service_pb2_grpc; "
            "from tests.backend.serving.infer_messages import stream_request; "
            "stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1])); "
            "answers = stub.ModelStreamInfer(iter([stream_request(10_000, pause_s=0.02)])); "
            "next(answers); print('started', flush=True); queue.Queue().get()")
    with subprocess.Popen([sys.executable, "-c", code, server.grpc_url, str(ROOT)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        process.kill()
    wait_until_nothing_runs(stub)


def test_half_close_lets_the_answer_finish(stub):
    assert stream(stub, stream_request(5, pause_s=0.02))[-1] == END  # the iterator of requests ended at once


def test_tritonclients_callback_stream_works(client):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("decoupled", [
        tensor("PROMPT", np.array([b"x"], object), "BYTES"), tensor("MAX_TOKENS", np.array([2], np.int32), "INT32")],
        request_id="r", enable_empty_final_response=True)
    seen = [answers.get(timeout=ANSWER_TIMEOUT_S) for _ in range(3)]
    client.stop_stream()
    assert [error for _, error in seen] == [None] * 3
    assert [result.as_numpy("TOKEN").item() for result, _ in seen[:2]] == [b"t0", b"t1"]
    assert seen[2][0].get_response().parameters["triton_final_response"].bool_param


def test_tritonclients_asyncio_stream_works(server):
    async def tokens() -> list[bytes]:
        async def requests():
            yield {"model_name": "decoupled", "inputs": [
                tensor("PROMPT", np.array([b"x"], object), "BYTES"),
                tensor("MAX_TOKENS", np.array([3], np.int32), "INT32")]}

        async with triton_aio.InferenceServerClient(server.grpc_url) as connected:
            found = []
            async for result, error in connected.stream_infer(requests()):
                assert error is None
                found.append(result.as_numpy("TOKEN").item())
            return found

    assert asyncio.run(tokens()) == [b"t0", b"t1", b"t2"]


def test_many_streams_at_once_each_get_their_own_answer_in_order(stub):
    def tokens(count: int) -> list[str]:
        return stream(stub, stream_request(count))

    with ThreadPoolExecutor(16) as pool:
        for count, answer in zip(range(40, 56), pool.map(tokens, range(40, 56)), strict=True):
            assert answer == [f"t{index}" for index in range(count)] + [END]


def test_bytes_that_are_no_message_are_refused_and_harm_nobody(server, stub):
    malformed = request("echo", text(b"a")).SerializeToString().replace(b"echo", b"\xff\xfe\xfdo")
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as failure:
            infer(malformed, timeout=ANSWER_TIMEOUT_S)
        assert failure.value.code().name in ("INTERNAL", "UNKNOWN", "NOT_FOUND")  # grpc's own choice, in each language
        answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter([b"\xff\xff\xff"]), timeout=ANSWER_TIMEOUT_S)
        with contextlib.suppress(grpc.RpcError):
            assert list(answers) == []
        assert answers.code().name in ("INTERNAL", "OK")  # the real server closes the stream without a word
    assert stub.ModelInfer(request("echo", text(b"a")), timeout=ANSWER_TIMEOUT_S).raw_output_contents


def test_unknown_rpc_is_unimplemented(server):
    with grpc.insecure_channel(server.grpc_url) as channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/inference.GRPCInferenceService/Nope")(b"", timeout=ANSWER_TIMEOUT_S)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_timeout_parameter_is_taken_in_microseconds(stub):
    message = request("echo", text(b"a"))
    set_parameter(message, "timeout", 30_000_000)
    assert stub.ModelInfer(message, timeout=ANSWER_TIMEOUT_S).raw_output_contents
