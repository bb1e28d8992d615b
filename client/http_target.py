"""HTTP target: a server's URL, and what every request to it carries. Used by both HTTP connections."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from client.connection import Tls
from client.errors import ChatError, RequestRefusedError, ServerAwayError
from protocol.ports import OPENAI_PORT


def is_url(address: str) -> bool:
    """Whether an address is meant for HTTP; HOST:PORT is gRPC's."""
    return address.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """address  the URL without its /v1
    path     what the URL has before /v1
    tls      None: not encrypted
    timeout_s  for a whole answer; None waits as long as it takes"""

    address: str
    host: str
    port: int
    path: str
    headers: dict[str, str]
    tls: ssl.SSLContext | None
    timeout_s: float | None

    @classmethod
    def of(cls, address: str, api_key: str | None, tls: Tls | None, timeout_s: float | None) -> HttpTarget:
        """Raises RequestRefusedError for a URL that names no host, or that is not encrypted and should be."""
        try:
            url = urlsplit(address)
            port = url.port
        except ValueError as error:
            raise RequestRefusedError(f"{address} is no URL ({error}); use http://HOST:{OPENAI_PORT}") from None
        is_tls = url.scheme == "https"
        if not url.hostname or url.query or url.fragment or url.username:
            raise RequestRefusedError(f"{address} is no server's URL; use http://HOST:{OPENAI_PORT}")
        if tls and not is_tls:
            raise RequestRefusedError(f"{address} is not encrypted; use https://")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "millrace"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        path = url.path.rstrip("/").removesuffix("/v1")
        return cls(f"{url.scheme}://{url.netloc}{path}", url.hostname, port or (443 if is_tls else 80), path, headers,
                   (tls or Tls()).context() if is_tls else None, timeout_s)

    def no_connection(self, error: Exception | str) -> ChatError:
        """The error of a connection that could not be made, or broke."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return RequestRefusedError(f"{self.address} has a certificate that is not trusted ({error}); name the "
                                       "authority that signed it: Tls(ca=FILE), or --tls_ca")
        return ServerAwayError(f"{self.address} is not available ({error}); check the address, start the server, or "
                               "wait")
