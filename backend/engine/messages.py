"""Messages: what a front end and the engine's process say to each other, as msgpack over ZeroMQ.

A front end sends Commands, the engine answers with Events. Used by engine_client.py and engine_process.py.
Imports no torch."""

from __future__ import annotations

from typing import Literal

import msgspec
import zmq

from backend.requests import EngineStats, GenerateOutput, GenerateRequest


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """What each kind uses besides it:

    hello                      nothing; answered by `ready`
    add                        request
    abort, finish              request_id; finish also num_completion_tokens, and session_id where there is one
    abort_group                call_id, request_id; answered by `done` or `refused`
    stop_session, end_session  call_id, session_id; stop_session also forget; answered by `done` or `refused`
    stats                      call_id; answered by `done` with stats
    stop                       nothing; ends the engine"""

    kind: Literal["hello", "add", "abort", "abort_group", "finish", "stop_session", "end_session", "stats", "stop"]
    request: GenerateRequest | None = None
    request_id: str = ""
    num_completion_tokens: int = 0
    call_id: str = ""
    session_id: int | None = None
    forget: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """A command that could not be carried out: its request_id or call_id, the class in backend.errors, the line,
    and RequestError's field."""

    about: str
    error: str
    message: str
    field: str | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """ready: the answer to hello, with the engine's session_len and max_requests. done: call_id of a command that was
    carried out. dead: why the engine ended; nothing follows."""

    outputs: list[GenerateOutput] = []
    refused: Refusal | None = None
    done: str = ""
    stats: EngineStats | None = None
    ready: bool = False
    session_len: int = 0
    max_requests: int = 0
    dead: str = ""


def unlimited_queues(socket: zmq.Socket) -> None:
    """For a peer that does not read for a while: beyond ZeroMQ's default of 1,000 messages a ROUTER drops them."""
    socket.sndhwm = socket.rcvhwm = 0
