"""Server options: how the embedded servers listen, whom they let in and how much they take. Used by both of them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and credentials.

    max_message_bytes       of one request or response
    max_concurrent_streams  calls at once on one gRPC connection
    api_key                 calls carry it as `authorization: Bearer KEY`, except health checks; None: no key
    tls_key, tls_cert       PEM files; both or neither"""

    max_message_bytes: int = 64 * 2**20
    max_concurrent_streams: int = 1024
    api_key: str | None = None
    tls_key: Path | None = None
    tls_cert: Path | None = None

    def lets_in(self, authorization: str | bytes | None) -> bool:
        """Whether a request with this header may be answered; takes the same time for every wrong key."""
        if self.api_key is None:
            return True
        given = authorization.encode() if isinstance(authorization, str) else authorization or b""
        return hmac.compare_digest(given, f"Bearer {self.api_key}".encode())


KEY_REFUSAL = "an API key is needed: authorization: Bearer KEY"
