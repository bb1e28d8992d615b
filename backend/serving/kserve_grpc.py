"""KServe v2 over gRPC: the embedded server on port 33337, on the service stubs that tritonclient ships.

Owns the listening port and the mapping of each RPC; what a request means is in infer_request.py and inference.py.
Used by backend.serve."""

from __future__ import annotations

import functools

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backend.errors import ConfigError, MillraceError
from backend.serving.api_keys import KEY_REFUSAL
from backend.serving.infer_request import check_request
from backend.serving.infer_response import ResponseEncoder
from backend.serving.infer_stream import InferStream
from backend.serving.inference import Inference, only_response
from backend.serving.model_repository import LOAD_REFUSAL, SHARED_MEMORY_REFUSAL, ModelRepository
from backend.serving.protocol_error import ProtocolError, wire_status
from backend.serving.server_options import ServerOptions

# Probes of a container platform carry no key.
_OPEN_METHODS = frozenset({"/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady",
                           "/grpc.health.v1.Health/Check"})
_STOPPED_S = 1.0  # for what gRPC itself has to finish after the last answer


class GrpcServer:
    """The embedded server. `start` and `stop` are called once each, on the event loop that serves."""

    def __init__(self, repository: ModelRepository, options: ServerOptions | None = None):
        self._options = options or ServerOptions()
        self._inference = Inference("GRPC")
        self._repository = repository
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which port 0 leaves to the system. Raises ConfigError where it is taken."""
        options = self._options
        server = grpc.aio.server(
            interceptors=[_ApiKey(options)] if options.api_keys else [],
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", options.max_message_bytes),
                ("grpc.max_metadata_size", options.max_header_bytes),
                ("grpc.max_concurrent_streams", options.max_concurrent_streams),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half of the requests
            ])
        servicer = _Servicer(self._repository, self._inference)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        server.add_generic_rpc_handlers([_health_handler(self._repository, self._inference)])
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if options.tls_key and options.tls_cert:
                pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
                bound_port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                bound_port = server.add_insecure_port(address)
        except RuntimeError:
            bound_port = 0
        if not bound_port:
            raise ConfigError(f"gRPC cannot listen on {host}:{port}: the port is in use or the address is not this "
                              "machine's; choose another with --port")
        await server.start()
        self._server = server
        return bound_port

    @property
    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._inference.is_stopping

    async def stop(self, grace_s: float = 30.0) -> None:
        """Refuses new requests, lets the running ones finish for at most `grace_s`, then closes the port."""
        await self._inference.stop(grace_s)
        if self._server is not None:
            await self._server.stop(_STOPPED_S)


def _answered(method):
    """An RPC whose MillraceErrors become its status."""

    @functools.wraps(method)
    async def answer(self, request, context: grpc.aio.ServicerContext):
        try:
            return await method(self, request, context)
        except MillraceError as error:
            status, message = wire_status(error)[0], str(error)
        await context.abort(grpc.StatusCode[status], message)

    return answer


def _refused(status: str, message: str):
    """An RPC that always answers so."""

    @_answered
    async def answer(self, request, context):
        raise ProtocolError(status, message)

    return answer


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """GRPCInferenceService, RPC by RPC, under the protocol's names."""

    def __init__(self, repository: ModelRepository, inference: Inference):
        self._repository = repository
        self._inference = inference

    @_answered
    async def ServerLive(self, request, context):
        self._inference.refuse_when_stopping()
        return service_pb2.ServerLiveResponse(live=True)

    @_answered
    async def ServerReady(self, request, context):
        self._inference.refuse_when_stopping()
        return service_pb2.ServerReadyResponse(ready=self._repository.is_ready())

    async def ServerMetadata(self, request, context):
        return self._repository.server_metadata()

    @_answered
    async def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self._repository.is_model_ready(request.name, request.version))

    @_answered
    async def ModelMetadata(self, request, context):
        return self._repository.metadata(request.name, request.version)

    @_answered
    async def ModelConfig(self, request, context):
        return service_pb2.ModelConfigResponse(config=self._repository.find(request.name, request.version).spec.config)

    @_answered
    async def ModelStatistics(self, request, context):
        return self._repository.statistics(request.name, request.version)

    async def RepositoryIndex(self, request, context):
        return self._repository.index(only_ready=request.ready)

    @_answered
    async def ModelInfer(self, request, context):
        self._inference.refuse_when_stopping()
        if self._repository.find(request.model_name, request.model_version).spec.is_decoupled:
            raise ProtocolError("UNIMPLEMENTED", "ModelInfer RPC doesn't support models with decoupled transaction "
                                "policy")
        call = check_request(self._repository, request)
        async with self._inference.answering(call) as responses:
            return ResponseEncoder(call).unary(await only_response(responses))

    async def ModelStreamInfer(self, request_iterator, context):
        await InferStream(self._repository, self._inference, context).run(request_iterator)

    RepositoryModelLoad = _refused("UNAVAILABLE", LOAD_REFUSAL)
    RepositoryModelUnload = _refused("UNAVAILABLE", LOAD_REFUSAL)
    TraceSetting = _refused("UNIMPLEMENTED", "trace settings are not supported by this server")
    LogSettings = _refused("UNIMPLEMENTED", "log settings are not supported by this server")
    SystemSharedMemoryStatus = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)
    SystemSharedMemoryRegister = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)
    SystemSharedMemoryUnregister = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)
    CudaSharedMemoryStatus = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)
    CudaSharedMemoryRegister = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)
    CudaSharedMemoryUnregister = _refused("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL)


def _health_handler(repository: ModelRepository, inference: Inference) -> grpc.GenericRpcHandler:
    """grpc.health.v1.Health/Check, as probes of container platforms call it; its one field is a status of 1 or 2."""

    async def check(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        is_serving = repository.is_ready() and not inference.is_stopping
        return b"\x08\x01" if is_serving else b"\x08\x02"

    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)})


class _ApiKey(grpc.aio.ServerInterceptor):
    """Refuses each call that does not carry a key."""

    def __init__(self, options: ServerOptions):
        self._options = options

    async def intercept_service(self, continuation, handler_call_details):
        authorization = dict(handler_call_details.invocation_metadata or ()).get("authorization")
        if handler_call_details.method in _OPEN_METHODS or self._options.api_keys.lets_in(authorization):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    @staticmethod
    async def _refuse(request_iterator, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, KEY_REFUSAL)
