"""The servers that the protocol's tests talk to: the same stub models in the embedded server and in the real one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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
def real_starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], TritonServer]]:
    """The real server, started again where it has died, so that one test's crash is not every later test's."""
    folder = tmp_path_factory.mktemp("triton")
    repository = write_repository(folder, CONFIGS, "tests.backend.serving.stub_models", "models")
    running: list[TritonServer] = []
    with contextlib.ExitStack() as servers:
        def living() -> TritonServer:
            if not running or running[-1].process.poll() is not None:
                running.append(servers.enter_context(start_triton(repository)))
            return running[-1]

        yield living


@pytest.fixture
def real(real_starts: Callable[[], TritonServer]) -> TritonServer:
    return real_starts()


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
