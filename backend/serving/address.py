"""Address: where a service listens, and whether it can.

Looked at before anything slow has begun. Used by backend/serve.py and its servers. Imports no torch."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from itertools import combinations

from backend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens: one host, and a port for each protocol, None for one that it does not speak.

    port         KServe v2 over gRPC
    http_port    KServe v2 over HTTP
    server_port  OpenAI's API
    has_tls      all of them are encrypted"""

    host: str
    port: int | None = None
    http_port: int | None = None
    server_port: int | None = None
    has_tls: bool = False

    def check_is_free(self) -> None:
        """Raises ConfigError, naming port and option, before anything slow has begun."""
        for (one, port), (other, number) in combinations(self._ports.items(), 2):
            if port == number:
                raise ConfigError(f"{one} and {other} are both {port}; choose two different ones")
        for option, port in self._ports.items():
            _check_port(self.host, port, option)

    def __str__(self) -> str:
        forms = {"--server_port": "http://{}:{}/v1", "--port": "grpc://{}:{}", "--http_port": "http://{}:{}"}
        urls = [form.format(self.host, self._ports[option]) for option, form in forms.items() if option in self._ports]
        if self.has_tls:
            urls = [url.replace("://", "s://", 1) for url in urls]
        return " and ".join(filter(None, (", ".join(urls[:-1]), urls[-1])))

    @property
    def _ports(self) -> dict[str, int]:
        """By option, those that are used."""
        ports = {"--port": self.port, "--http_port": self.http_port, "--server_port": self.server_port}
        return {option: port for option, port in ports.items() if port is not None}


def _check_port(host: str, port: int, option: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections still time out is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise ConfigError(f"the host {host!r} is not known; use --host 0.0.0.0 for all interfaces, or 127.0.0.1 for "
                          "this machine alone") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use; stop what listens there, or choose another with "
                              f"{option}") from None
        raise ConfigError(f"port {port} of {host} cannot be used ({error.strerror}); choose another with "
                          f"{option}") from None
