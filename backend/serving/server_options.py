"""Server options: how our own servers listen, whom they let in and how much they take. Used by all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.serving.api_keys import NO_KEYS, ApiKeys


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """What pages of other origins may do (CORS); `*` among origins, methods or headers means any."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    allows_credentials: bool = False


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and credentials.

    max_body_bytes          of one request over HTTP, which is parsed while others wait
    max_message_bytes       of one request or response over gRPC
    max_header_bytes        of a request's headers together
    max_concurrent_streams  calls at once on one gRPC connection
    body_timeout_s          in which the headers of an HTTP request have to be there, and then its body
    reading_timeout_s       after which an HTTP client that reads nothing of what waits for it loses its connection
    stuck_after_s           seconds without a step, with work to do, after which the engine is not healthy
    api_keys                calls carry one as `authorization: Bearer KEY`, except health checks
    tls_key, tls_cert       PEM files; both or neither
    cross_origin            None: pages of other origins get nothing
    http_workers            processes that serve OpenAI's API; 1: the service's own
    logs_requests           a line in the log for each call of OpenAI's API
    otlp_endpoint           of a collector of OpenTelemetry traces"""

    max_body_bytes: int = 8 * 2**20
    max_message_bytes: int = 64 * 2**20
    max_header_bytes: int = 64 * 2**10
    max_concurrent_streams: int = 1024
    body_timeout_s: float = 60.0
    reading_timeout_s: float = 120.0
    stuck_after_s: float = 60.0
    api_keys: ApiKeys = NO_KEYS
    tls_key: Path | None = None
    tls_cert: Path | None = None
    cross_origin: CrossOrigin | None = None
    http_workers: int = 1
    logs_requests: bool = False
    otlp_endpoint: str | None = None
