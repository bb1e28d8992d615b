"""The servers that the protocol's tests talk to: the same stub models in the embedded server and in the real one."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from tests.backend.serving.embedded_harness import EmbeddedServer, start_embedded, write_configs
from tests.backend.serving.stub_models import CONFIGS, models
from tests.backend.serving.triton_harness import TritonServer, start_triton, write_repository

PARAMS = ["embedded", pytest.param("triton", marks=pytest.mark.real_triton)]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with start_embedded(write_configs(tmp_path_factory.mktemp("embedded"), CONFIGS), models()) as running:
        yield running


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    with start_triton(write_repository(folder, CONFIGS, "tests.backend.serving.stub_models", "models")) as running:
        yield running


@pytest.fixture(params=PARAMS)
def server_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(request: pytest.FixtureRequest, server_name: str) -> EmbeddedServer | TritonServer:
    return request.getfixturevalue({"embedded": "embedded", "triton": "real"}[server_name])


@pytest.fixture
def client(server: EmbeddedServer | TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture
def stub(server: EmbeddedServer | TritonServer) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """The bare stub: what the client's functions would not send, and what they do not show."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
