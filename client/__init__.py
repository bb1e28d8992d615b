"""Client of a Millrace server: a library, `python -m client` for the terminal, `python -m client.webui` for a browser.

    from client import ChatClient
    session = ChatClient("127.0.0.1:33337").session()
    print(session.infer("Hello!").text)

Speaks the KServe v2 protocol over gRPC to the served model `chat`, or OpenAI's API to a URL. Needs neither torch nor
anything of backend."""

from client.async_session import AsyncSession
from client.chat_client import AsyncChatClient, ChatClient
from client.connection import Tls
from client.errors import (
    ChatError,
    DeadlineError,
    RequestRefusedError,
    ServerAwayError,
    ServerFailedError,
    SessionFullError,
    SessionLostError,
)
from client.server_info import ServerInfo
from client.session import Answer, Session
from client.wire import Increment, Sampling

__all__ = ["Answer", "AsyncChatClient", "AsyncSession", "ChatClient", "ChatError", "DeadlineError", "Increment",
           "RequestRefusedError", "Sampling", "ServerAwayError", "ServerFailedError", "ServerInfo", "Session",
           "SessionFullError", "SessionLostError", "Tls"]
