"""ChatClient and AsyncChatClient: a server's sessions and what it says of itself.

Own the connection, one channel for all sessions. The library's entrance; also what cli.py and the web UI use."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from client.async_session import AsyncSession
from client.connection import AsyncConnection, Connection, Target, Tls
from client.errors import ChatError
from client.session import Session
from protocol.models import CHAT, TURBOMIND


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """version      of the server
    model_name   as in the workspace's config.ini; None where the server does not say
    session_len  tokens of prompt and completion that one session can hold; None likewise"""

    version: str
    model_name: str | None
    session_len: int | None


class ChatClient:
    """A connection to a server; made at once, opened with the first request, opened again after a loss.

        with ChatClient("127.0.0.1:33337") as client:
            session = client.session()
            print(session.infer("My name is Ada.").text)
            print(session.infer("What is my name?").text)

    address    HOST or HOST:PORT
    api_key    sent as `authorization: Bearer ...` with each request
    tls        Tls() encrypts; Tls(ca="ca.pem") trusts that authority
    timeout_s  the longest that one answer may take
    Thread-safe; hundreds of sessions share the one channel."""

    def __init__(self, address: str, api_key: str | None = None, tls: Tls | None = None,
                 timeout_s: float | None = None) -> None:
        self._connection = Connection(Target.of(address, api_key, tls, timeout_s))

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._connection.target.address

    def session(self, session_id: int | None = None) -> Session:
        """A new conversation. An id that the server knows already is begun anew; None draws one of 63 bits."""
        return Session(self._connection, _session_id(session_id))

    def is_ready(self) -> bool:
        """Whether the server answers and can chat."""
        try:
            return self._connection.control("ModelReady", service_pb2.ModelReadyRequest(name=CHAT)).ready
        except ChatError:
            return False

    def server_info(self) -> ServerInfo:
        """What the server says of itself. Raises ServerAwayError."""
        metadata = self._connection.control("ServerMetadata", service_pb2.ServerMetadataRequest())
        config = self._connection.control("ModelConfig", service_pb2.ModelConfigRequest(name=TURBOMIND))
        return _server_info(metadata, config)

    def close(self) -> None:
        """Ends what runs; the server keeps the sessions until it forgets them."""
        self._connection.close()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncChatClient:
    """ChatClient for asyncio, with the same names.

    async with AsyncChatClient("127.0.0.1:33337") as client:
        print((await client.session().infer("Hello!")).text)"""

    def __init__(self, address: str, api_key: str | None = None, tls: Tls | None = None,
                 timeout_s: float | None = None) -> None:
        self._connection = AsyncConnection(Target.of(address, api_key, tls, timeout_s))

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._connection.target.address

    def session(self, session_id: int | None = None) -> AsyncSession:
        """As ChatClient.session."""
        return AsyncSession(self._connection, _session_id(session_id))

    async def is_ready(self) -> bool:
        """As ChatClient.is_ready."""
        try:
            return (await self._connection.control("ModelReady", service_pb2.ModelReadyRequest(name=CHAT))).ready
        except ChatError:
            return False

    async def server_info(self) -> ServerInfo:
        """As ChatClient.server_info."""
        metadata = await self._connection.control("ServerMetadata", service_pb2.ServerMetadataRequest())
        config = await self._connection.control("ModelConfig", service_pb2.ModelConfigRequest(name=TURBOMIND))
        return _server_info(metadata, config)

    async def close(self) -> None:
        """As ChatClient.close."""
        await self._connection.close()

    async def __aenter__(self) -> AsyncChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _session_id(given: int | None) -> int:
    return secrets.randbelow(2**63 - 1) + 1 if given is None else given


def _server_info(metadata: service_pb2.ServerMetadataResponse, response: service_pb2.ModelConfigResponse) -> ServerInfo:
    parameters = {name: value.string_value for name, value in response.config.parameters.items()}
    session_len = parameters.get("session_len")
    return ServerInfo(metadata.version, parameters.get("model_name"), int(session_len) if session_len else None)
