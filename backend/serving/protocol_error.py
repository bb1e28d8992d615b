"""Protocol error: an answer to a request that names its status, in gRPC's words and in HTTP's.

`wire_status` is the one place where an exception becomes (gRPC status name, HTTP code). Used by all of serving."""

from __future__ import annotations

from backend.errors import MillraceError
from backend.serving.served_model import status_of

# Triton's HTTP server knows fewer codes than gRPC: a bad request is 400 whatever its kind.
_HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "RESOURCE_EXHAUSTED": 429,
    "DEADLINE_EXCEEDED": 504,
    "UNAUTHENTICATED": 401,
    "CANCELLED": 400,
}


class ProtocolError(MillraceError):
    """A request that the server itself refuses or cannot answer; `status` is a gRPC status code's name.

    The message is one line: a line break in what it quotes from the request is written as \\n."""

    def __init__(self, status: str, message: str):
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))
        self.status = status


def wire_status(error: MillraceError) -> tuple[str, int]:
    """(gRPC status name, HTTP code) of an error."""
    if isinstance(error, ProtocolError):
        return error.status, _HTTP[error.status]
    grpc_status, _, http_code = status_of(error)
    return grpc_status, http_code
