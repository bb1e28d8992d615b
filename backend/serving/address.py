"""Address: where a service listens, and whether it can.

Looked at before anything slow has begun. Used by backend/serve.py and its servers. Imports no torch."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from backend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens: one host, gRPC on `port`, HTTP on `http_port`."""

    host: str
    port: int
    http_port: int

    def check_is_free(self) -> None:
        """Raises ConfigError, naming port and option, before anything slow has begun."""
        if self.port == self.http_port:
            raise ConfigError(f"--port and --http_port are both {self.port}; choose two different ones")
        _check_port(self.host, self.port, "--port")
        _check_port(self.host, self.http_port, "--http_port")

    def __str__(self) -> str:
        return f"grpc://{self.host}:{self.port} and http://{self.host}:{self.http_port}"


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
