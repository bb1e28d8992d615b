"""ChatClient and AsyncChatClient: a server's sessions and what it says of itself.

Own the connection, one for all sessions, which the address chooses: HOST:PORT is gRPC, a URL is OpenAI's API over HTTP.
The library's entrance; also what cli.py and the web UI use."""

from __future__ import annotations

import secrets

from client.async_http_connection import AsyncHttpConnection
from client.async_session import AsyncSession
from client.connection import AsyncConnection, Connection, Target, Tls
from client.http_connection import HttpConnection
from client.http_target import HttpTarget, is_url
from client.server_info import ServerInfo
from client.session import Session


class ChatClient:
    """A connection to a server; made at once, opened with the first request, opened again after a loss.

        with ChatClient("127.0.0.1:33337") as client:
            session = client.session()
            print(session.infer("My name is Ada.").text)
            print(session.infer("What is my name?").text)

    address    HOST or HOST:PORT for gRPC; http://HOST:PORT or https://HOST:PORT for any server of OpenAI's API
    api_key    sent as `authorization: Bearer ...` with each request
    tls        Tls() encrypts; Tls(ca="ca.pem") trusts that authority
    timeout_s  the longest that one answer may take
    model      over HTTP, which of the server's models; one that it does not have, or None, is its first
    Over HTTP each request brings the whole conversation, so the server holds no session that could be lost; before an
    answer's last increment its counts are not known, but for num_completion_tokens, which counts the increments.
    Thread-safe; hundreds of sessions share the connection."""

    def __init__(self, address: str, api_key: str | None = None, tls: Tls | None = None,
                 timeout_s: float | None = None, model: str | None = None) -> None:
        self._connection = (HttpConnection(HttpTarget.of(address, api_key, tls, timeout_s), model) if is_url(address)
                            else Connection(Target.of(address, api_key, tls, timeout_s)))

    @property
    def address(self) -> str:
        """HOST:PORT, or the URL."""
        return self._connection.target.address

    def session(self, session_id: int | None = None) -> Session:
        """A new conversation. An id that the server knows already is begun anew; None draws one of 63 bits."""
        return Session(self._connection, _session_id(session_id))

    def is_ready(self) -> bool:
        """Whether the server answers and can chat."""
        return self._connection.is_ready()

    def server_info(self) -> ServerInfo:
        """What the server says of itself. Raises ServerAwayError."""
        return self._connection.server_info()

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
                 timeout_s: float | None = None, model: str | None = None) -> None:
        self._connection = (
            AsyncHttpConnection(HttpTarget.of(address, api_key, tls, timeout_s), model) if is_url(address)
            else AsyncConnection(Target.of(address, api_key, tls, timeout_s)))

    @property
    def address(self) -> str:
        """HOST:PORT, or the URL."""
        return self._connection.target.address

    def session(self, session_id: int | None = None) -> AsyncSession:
        """As ChatClient.session."""
        return AsyncSession(self._connection, _session_id(session_id))

    async def is_ready(self) -> bool:
        """As ChatClient.is_ready."""
        return await self._connection.is_ready()

    async def server_info(self) -> ServerInfo:
        """As ChatClient.server_info."""
        return await self._connection.server_info()

    async def close(self) -> None:
        """As ChatClient.close."""
        await self._connection.close()

    async def __aenter__(self) -> AsyncChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _session_id(given: int | None) -> int:
    return secrets.randbelow(2**63 - 1) + 1 if given is None else given
