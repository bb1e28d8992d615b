"""What can go wrong in a chat with a server: one base, a child per cure, each with the server's own line.

Owns the translation of gRPC codes, of HTTP's status and of the server's texts. gRPC's INVALID_ARGUMENT is one code for
many cures, and an error inside a stream has no code at all, so a session's errors are known by their text. Used by all
of client."""

from __future__ import annotations

import re

import grpc

from protocol.status import StatusCode


class ChatError(Exception):
    """Base of every error of a chat. `status` is what LMDeploy's client of 2023 would have returned."""

    status = StatusCode.SERVER_ERR


class ServerAwayError(ChatError):
    """Nobody answers at the address, or the server cannot serve now. The next turn tries again by itself."""


class ServerFailedError(ChatError):
    """The server broke while it worked on the request."""


class DeadlineError(ChatError):
    """The answer was not complete within timeout_s."""


class RequestRefusedError(ChatError):
    """The request has a value that the server, or this client, cannot accept; the session is as it was before."""

    status = StatusCode.SESSION_INVALID_ARG


class SessionLostError(ChatError):
    """The server no longer knows the session, after a restart or a long pause. Session.resume() is the cure."""

    status = StatusCode.SESSION_CLOSED


class SessionFullError(ChatError):
    """The conversation and its answer do not fit session_len, which the message names; the session is as it was."""

    status = StatusCode.SESSION_OUT_OF_LIMIT


class HistoryNeededError(RequestRefusedError):
    """The model's chat template rewrites earlier turns, so a session's next turn has to bring them.

    The sessions do that by themselves; no caller meets this."""


# A session that is unknown, or that holds fewer tokens than this client saw it hold.
_LOST = re.compile(r"session \d+ (is not known|holds )")
_FULL = re.compile(r"exceed session_len=\d+")
_REWRITES = re.compile(r"rewrites earlier turns")


def error_of_line(line: str) -> ChatError:
    """The error that a line without a status code means: a request that the server read and refused."""
    if _LOST.search(line):
        return SessionLostError(line)
    if _FULL.search(line):
        return SessionFullError(line)
    if _REWRITES.search(line):
        return HistoryNeededError(line)
    return RequestRefusedError(line)


def error_of_call(error: grpc.RpcError, address: str) -> ChatError:
    """The error that a failed gRPC call to `address` means."""
    code, line = error.code(), error.details() or "no reason given"
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerAwayError(f"{address} is not available ({line}); check the address, start the server, or wait")
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return DeadlineError(f"{address} did not answer in time ({line}); allow a longer timeout_s")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return RequestRefusedError(f"{address} wants another api_key ({line})")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return error_of_line(line)
    return ServerFailedError(f"{address} failed ({code.name}): {line}")


def error_of_status(status: int, line: str, code: str | None, address: str) -> ChatError:
    """The error that an HTTP status other than 200 means, with OpenAI's error code where the server gave one."""
    if code == "context_length_exceeded":
        return SessionFullError(line)
    if status in (401, 403):
        return RequestRefusedError(f"{address} wants another api_key ({line})")
    if status in (408, 504):
        return DeadlineError(f"{address} did not answer in time ({line}); allow a longer timeout_s")
    if status in (429, 502, 503):
        return ServerAwayError(f"{address} cannot answer now ({line}); wait, and ask again")
    if 400 <= status < 500:
        return RequestRefusedError(line)
    return ServerFailedError(f"{address} failed ({status}): {line}")
