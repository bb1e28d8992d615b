"""ServerInfo: what a server says of itself, whatever its protocol. Made by the connections, told by chat_client.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """version      of the server; None where it does not say
    model_name   as in the workspace's config.ini, or as OpenAI's API lists it; None where the server does not say
    session_len  tokens of prompt and completion that one session can hold; None likewise"""

    version: str | None
    model_name: str | None
    session_len: int | None
