"""Connection: one gRPC channel to a server, blocking or asyncio, whose failures are ChatErrors.

Owns the channel, its credentials and deadlines. Knows tensors only through wire.py, and nothing of sessions. Every
request is a stream of its own: streams are cheap in HTTP/2, and cancelling one cancels nothing else. Used by
chat_client.py and the sessions."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from client.errors import ChatError, RequestRefusedError, error_of_call, error_of_line
from client.server_info import ServerInfo
from client.wire import Increment, decode_response, encode_request
from protocol.models import CHAT, TURBOMIND
from protocol.ports import GRPC_PORT, OPENAI_PORT

CONTROL_TIMEOUT_S = 10.0  # for what needs no generating

_OPTIONS = [
    ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
    # A server that comes back is found at once; gRPC's own pause between attempts grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption: PEM files. Without `ca` the system's authorities are trusted; key and certificate are the client's
    own, where the server asks for them."""

    ca: Path | str | None = None
    key: Path | str | None = None
    certificate: Path | str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises RequestRefusedError for a file that cannot be read."""
        try:
            return grpc.ssl_channel_credentials(
                *(Path(file).read_bytes() if file else None for file in (self.ca, self.key, self.certificate)))
        except OSError as error:
            raise RequestRefusedError(f"TLS file {error.filename} cannot be read: {error.strerror}") from error

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises RequestRefusedError for a file that cannot be read, or that is no PEM."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # as ssl.SSLError is
            raise RequestRefusedError(f"the TLS files cannot be read: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is and how to address it.

    timeout_s  for a whole answer; None waits as long as it takes"""

    address: str
    metadata: tuple[tuple[str, str], ...]
    credentials: grpc.ChannelCredentials | None
    timeout_s: float | None

    @classmethod
    def of(cls, address: str, api_key: str | None, tls: Tls | None, timeout_s: float | None) -> Target:
        """Raises RequestRefusedError for an address that is not HOST or HOST:PORT."""
        if "://" in address or "/" in address or not address:
            raise RequestRefusedError(f"{address!r} is no address; use HOST:{GRPC_PORT} for gRPC, or "
                                      f"http://HOST:{OPENAI_PORT}")
        if ":" not in address.rpartition("]")[2]:
            address = f"{address}:{GRPC_PORT}"
        metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        return cls(address, metadata, tls.credentials() if tls else None, timeout_s)

    @property
    def stream_metadata(self) -> tuple[tuple[str, str], ...]:
        """Asks for a model's error as the stream's gRPC status, code included, not as a text inside it."""
        return (*self.metadata, ("triton_grpc_error", "true"))


class Connection:
    """Blocking; any number of threads may use it at once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel = (grpc.secure_channel(target.address, target.credentials, _OPTIONS) if target.credentials
                         else grpc.insecure_channel(target.address, _OPTIONS))
        self._stub = GRPCInferenceServiceStub(self._channel)

    def infer(self, inputs: Mapping[str, Any]) -> Generator[Increment, None, None]:
        """The increments of one answer; closing the generator cancels the request. Raises ChatErrors."""
        request = encode_request(inputs, self.target.timeout_s)
        call = self._stub.ModelStreamInfer(iter([request]), timeout=self.target.timeout_s,
                                           metadata=self.target.stream_metadata)
        try:
            for response in call:
                part = _increment(response)
                if part is not None and part.finish_reason is not None:
                    for _ in call:  # so that the server is done with the turn when the caller sees its end
                        pass
                if part is not None:
                    yield part
        except grpc.RpcError as error:
            raise error_of_call(error, self.target.address) from error
        finally:
            call.cancel()

    def command(self, inputs: Mapping[str, Any]) -> None:
        """A request whose answer says nothing, as STOP and END are."""
        with closing(self.infer(inputs)) as parts:
            for _ in parts:
                pass

    def is_ready(self) -> bool:
        """Whether the server answers and can chat."""
        try:
            return self._control("ModelReady", service_pb2.ModelReadyRequest(name=CHAT)).ready
        except ChatError:
            return False

    def server_info(self) -> ServerInfo:
        """What the server says of itself. Raises ServerAwayError."""
        metadata = self._control("ServerMetadata", service_pb2.ServerMetadataRequest())
        config = self._control("ModelConfig", service_pb2.ModelConfigRequest(name=TURBOMIND))
        return _server_info(metadata, config)

    def _control(self, rpc: str, request: Message) -> Any:
        """A unary RPC of the service, by name."""
        try:
            return getattr(self._stub, rpc)(request, timeout=CONTROL_TIMEOUT_S, metadata=self.target.metadata)
        except grpc.RpcError as error:
            raise error_of_call(error, self.target.address) from error

    def close(self) -> None:
        """Ends running requests too."""
        self._channel.close()


class AsyncConnection:
    """The asyncio twin. The channel opens with the first call, because it belongs to the loop that runs then."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel: grpc.aio.Channel | None = None

    async def infer(self, inputs: Mapping[str, Any]) -> AsyncGenerator[Increment, None]:
        """As Connection.infer."""
        request = encode_request(inputs, self.target.timeout_s)
        call = self._stub().ModelStreamInfer(iter([request]), timeout=self.target.timeout_s,
                                             metadata=self.target.stream_metadata)
        try:
            async for response in call:
                part = _increment(response)
                if part is not None and part.finish_reason is not None:
                    async for _ in call:
                        pass
                if part is not None:
                    yield part
        except grpc.RpcError as error:
            raise error_of_call(error, self.target.address) from error
        finally:
            call.cancel()

    async def command(self, inputs: Mapping[str, Any]) -> None:
        """As Connection.command."""
        async for _ in self.infer(inputs):
            pass

    async def is_ready(self) -> bool:
        """As Connection.is_ready."""
        try:
            return (await self._control("ModelReady", service_pb2.ModelReadyRequest(name=CHAT))).ready
        except ChatError:
            return False

    async def server_info(self) -> ServerInfo:
        """As Connection.server_info."""
        metadata = await self._control("ServerMetadata", service_pb2.ServerMetadataRequest())
        config = await self._control("ModelConfig", service_pb2.ModelConfigRequest(name=TURBOMIND))
        return _server_info(metadata, config)

    async def _control(self, rpc: str, request: Message) -> Any:
        """As Connection._control."""
        try:
            return await getattr(self._stub(), rpc)(request, timeout=CONTROL_TIMEOUT_S, metadata=self.target.metadata)
        except grpc.RpcError as error:
            raise error_of_call(error, self.target.address) from error

    async def close(self) -> None:
        """Ends running requests too."""
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> GRPCInferenceServiceStub:
        if self._channel is None:
            target = self.target
            self._channel = (grpc.aio.secure_channel(target.address, target.credentials, _OPTIONS)
                             if target.credentials else grpc.aio.insecure_channel(target.address, _OPTIONS))
        return GRPCInferenceServiceStub(self._channel)


def _increment(response: service_pb2.ModelStreamInferResponse) -> Increment | None:
    if response.error_message:
        raise error_of_line(response.error_message)
    return decode_response(response.infer_response)


def _server_info(metadata: service_pb2.ServerMetadataResponse, response: service_pb2.ModelConfigResponse) -> ServerInfo:
    parameters = {name: value.string_value for name, value in response.config.parameters.items()}
    session_len = parameters.get("session_len")
    return ServerInfo(metadata.version, parameters.get("model_name"), int(session_len) if session_len else None)
