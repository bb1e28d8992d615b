"""The embedded gRPC server where the real one offers nothing to compare: deadlines, stopping, keys, limits."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backend.errors import ConfigError
from backend.serving.api_keys import ApiKeys
from backend.serving.kserve_grpc import GrpcServer
from backend.serving.model_repository import ModelRepository
from backend.serving.server_options import ServerOptions
from tests.backend.serving.embedded_harness import EmbeddedServer, start_embedded, write_configs
from tests.backend.serving.infer_messages import fail_request, request, shown, slow_request, stream_request, text
from tests.backend.serving.stub_models import CONFIGS, models

ANSWER_TIMEOUT_S = 10.0


@pytest.fixture
def folder(tmp_path):
    return write_configs(tmp_path / "models", CONFIGS)


def stub_of(channel: grpc.Channel) -> service_pb2_grpc.GRPCInferenceServiceStub:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def own_stub(embedded: EmbeddedServer):
    with grpc.insecure_channel(embedded.grpc_url) as channel:
        yield stub_of(channel)


def test_timeout_ends_a_unary_request_with_deadline_exceeded(own_stub):
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as failure:
        own_stub.ModelInfer(slow_request(5, timeout=100_000), timeout=ANSWER_TIMEOUT_S)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "not complete within the request's timeout of 0.1 s" in failure.value.details()
    assert time.monotonic() - begin < 2.5


def test_timeout_ends_one_request_of_a_stream_and_closes_its_generator(embedded, own_stub):
    answers = [shown(each) for each in own_stub.ModelStreamInfer(
        iter([stream_request(10_000, pause_s=0.02, timeout=100_000)]), timeout=ANSWER_TIMEOUT_S)]
    assert answers[0] == "t0" and "timeout of 0.1 s" in answers[-1] and answers[-1].endswith("!")
    assert embedded.models["decoupled"].num_running == 0


def test_triton_grpc_error_ends_the_stream_with_the_errors_status(own_stub):
    answers = own_stub.ModelStreamInfer(iter([stream_request(1, error=b"RequestError")]), timeout=ANSWER_TIMEOUT_S,
                                        metadata=[("triton_grpc_error", "true")])
    assert shown(next(answers)) == "t0"
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details() == "a RequestError on purpose"


def test_statistics_show_failures_and_the_time_of_successes(own_stub):
    def of(name: str) -> service_pb2.InferStatistics:
        return own_stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=name)).model_stats[0].inference_stats

    failed, took_ns = of("fail").fail.count, of("slow").success.ns
    with pytest.raises(grpc.RpcError):
        own_stub.ModelInfer(fail_request("RequestError"))
    own_stub.ModelInfer(slow_request(0.05))
    assert of("fail").fail.count == failed + 1
    assert of("slow").success.ns - took_ns >= 50e6


def test_a_reader_that_is_slow_stops_its_model_and_not_the_server(embedded, own_stub):
    """The queue and gRPC's own window fill; then the model has to wait, whatever it would stream."""
    answers = own_stub.ModelStreamInfer(iter([stream_request(10_000_000)]))
    next(answers)
    assert own_stub.ModelInfer(request("echo", text(b"a")), timeout=ANSWER_TIMEOUT_S).raw_output_contents
    answers.cancel()
    wait_until(lambda: embedded.models["decoupled"].num_running == 0)


def test_a_thousand_cancelled_requests_leave_nothing_running(embedded, own_stub):
    for _ in range(20):
        answers = own_stub.ModelStreamInfer(iter([stream_request(1000, pause_s=0.5) for _ in range(50)]))
        threading.Timer(0.02, answers.cancel).start()
        with pytest.raises(grpc.RpcError):
            list(answers)
    wait_until(lambda: embedded.models["decoupled"].num_running == 0)


@pytest.mark.parametrize("rpc", ["TraceSetting", "LogSettings", "SystemSharedMemoryStatus",
                                 "SystemSharedMemoryRegister", "CudaSharedMemoryUnregister"])
def test_what_the_server_does_not_have_it_says(own_stub, rpc):
    message = getattr(service_pb2, {"TraceSetting": "TraceSettingRequest", "LogSettings": "LogSettingsRequest"}.get(
        rpc, f"{rpc}Request"))()
    with pytest.raises(grpc.RpcError, match="not supported by this server") as failure:
        getattr(own_stub, rpc)(message)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_readiness_follows_the_engine_and_liveness_does_not(embedded, own_stub):
    embedded.is_ready[0] = False
    try:
        assert not own_stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        assert own_stub.ServerLive(service_pb2.ServerLiveRequest()).live
        assert not own_stub.ModelReady(service_pb2.ModelReadyRequest(name="echo")).ready
    finally:
        embedded.is_ready[0] = True


def test_stopping_refuses_new_requests_and_lets_running_ones_finish(folder):
    with start_embedded(folder, models()) as server, grpc.insecure_channel(server.grpc_url) as channel:
        stub = stub_of(channel)
        answers = stub.ModelStreamInfer(iter([stream_request(20, pause_s=0.02)]), timeout=ANSWER_TIMEOUT_S)
        next(answers)
        stopping = threading.Thread(target=server.run, args=(server.grpc.stop(grace_s=5),))
        stopping.start()
        wait_until(lambda: server.grpc.is_stopping)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(request("echo", text(b"a")))
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
        assert failure.value.details() == ("GRPC server is shutting down and has stopped accepting new requests.")
        assert [shown(each) for each in answers][-1] == "end!"
        stopping.join(ANSWER_TIMEOUT_S)
        assert not stopping.is_alive()


def test_stopping_ends_requests_that_take_longer_than_the_grace(folder):
    with start_embedded(folder, models()) as server, grpc.insecure_channel(server.grpc_url) as channel:
        stub = stub_of(channel)
        answers = stub.ModelStreamInfer(iter([stream_request(10_000, pause_s=0.02)]), timeout=ANSWER_TIMEOUT_S)
        next(answers)
        server.run(server.grpc.stop(grace_s=0.1))
        assert [shown(each) for each in answers][-1] == ("error: GRPC server stopped before the answer was complete!")
        assert server.models["decoupled"].num_running == 0


def test_a_key_is_asked_for_everywhere_but_in_health_checks(folder):
    with start_embedded(folder, models(), ServerOptions(api_keys=ApiKeys.of(["secret"]))) as server, \
            grpc.insecure_channel(server.grpc_url) as channel:
        stub = stub_of(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
        for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "secret")]):
            with pytest.raises(grpc.RpcError) as failure:
                stub.ModelInfer(request("echo", text(b"a")), metadata=metadata)
            assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as failure:
                list(stub.ModelStreamInfer(iter([stream_request(1)]), metadata=metadata))
            assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED
        key = [("authorization", "Bearer secret")]
        assert stub.ModelInfer(request("echo", text(b"a")), metadata=key).raw_output_contents
        assert len(list(stub.ModelStreamInfer(iter([stream_request(1)]), metadata=key))) == 2


def test_tls_is_spoken_with_the_given_key_and_certificate(folder, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
                        "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                       check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    with start_embedded(folder, models(), ServerOptions(tls_key=key, tls_cert=cert)) as server, \
            grpc.secure_channel(f"localhost:{server.grpc_port}",
                                grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
        assert stub_of(channel).ServerLive(service_pb2.ServerLiveRequest(), timeout=ANSWER_TIMEOUT_S).live


def test_a_message_over_the_limit_is_refused_and_harms_nobody(folder):
    with start_embedded(folder, models(), ServerOptions(max_message_bytes=1000)) as server, \
            grpc.insecure_channel(server.grpc_url) as channel:
        stub = stub_of(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ModelInfer(request("echo", text(b"a" * 2000)))
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.ModelInfer(request("echo", text(b"a" * 100))).raw_output_contents


def test_a_port_that_is_taken_is_one_clear_error(embedded, folder):
    async def start() -> int:
        return await GrpcServer(ModelRepository(models(), folder)).start("127.0.0.1", embedded.grpc_port)

    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{embedded.grpc_port}: the port is in use"):
        embedded.run(start())
