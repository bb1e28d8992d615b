"""Server flags: the options of backend.serve that say whom its servers let in and what they tell of themselves.

LMDeploy's names where it has them. Used by backend/serve.py."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from backend.errors import ConfigError
from backend.logs import LOG_FORMATS, choose_log_format
from backend.serving.api_keys import collect_api_keys
from backend.serving.server_options import CrossOrigin, ServerOptions
from backend.serving.tracing import check_tracing

# LMDeploy takes several values after one of these, up to the next option; also as one text with commas.
_LISTS = ("api_keys", "allow_origins", "allow_methods", "allow_headers")
_FILE = click.Path(dir_okay=False, path_type=Path)


class ServeCommand(click.Command):
    """A command whose list options may be followed by several values: `MODEL --api-keys KEY KEY`."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Where the model comes first: what comes before it could otherwise be its name."""
        if arguments and not arguments[0].startswith("-"):
            arguments = _joined(arguments)
        return super().parse_args(context, arguments)


def server_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; read_server_flags takes them."""
    options = [
        click.option("--api_keys", multiple=True, metavar="KEY...",
                     help="Calls then need one of these keys; also from MILLRACE_API_KEYS."),
        click.option("--api_key_file", type=_FILE, help="A file with further keys, one a line."),
        click.option("--ssl", is_flag=True, help="TLS with the files that SSL_KEYFILE and SSL_CERTFILE name."),
        click.option("--ssl_keyfile", type=_FILE, help="TLS with this private key, a PEM file …"),
        click.option("--ssl_certfile", type=_FILE, help="… and this certificate chain."),
        click.option("--allow_origins", multiple=True, metavar="ORIGIN...",
                     help="Web pages of these origins may call (CORS); * for all.  [default: none]"),
        click.option("--allow_methods", multiple=True, metavar="METHOD...",
                     help="… with these methods.  [default: all]"),
        click.option("--allow_headers", multiple=True, metavar="HEADER...",
                     help="… with these headers.  [default: all]"),
        click.option("--allow_credentials", is_flag=True, help="… with cookies and the like."),
        click.option("--max_body_mib", type=click.FloatRange(min=0, min_open=True),
                     help="Longest body of a request.  [default: 8 over HTTP, 64 over gRPC]"),
        click.option("--http_workers", type=click.IntRange(1, 64), default=1, show_default=True,
                     help="Processes that serve OpenAI's API, for more streams than one can feed."),
        click.option("--stuck_after", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
                     help="Seconds without a step, with work to do, after which health checks fail."),
        click.option("--log_requests", is_flag=True,
                     help="A line for each call of OpenAI's API; no prompts, no texts."),
        click.option("--log_format", type=click.Choice(LOG_FORMATS), default=LOG_FORMATS[0], show_default=True,
                     expose_value=False, callback=lambda _context, _option, name: choose_log_format(name),
                     help="json: each line of the log is an object."),
        click.option("--otlp_endpoint", envvar="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                     help="Sends OpenTelemetry traces to this collector, e.g. http://localhost:4318/v1/traces."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_server_flags(options: Mapping[str, Any]) -> ServerOptions:
    """What server_flags' options come to. Raises ConfigError."""
    check_tracing(options["otlp_endpoint"])
    key, cert = _tls_files(options)
    origins = _values(options["allow_origins"])
    defaults, max_bytes = ServerOptions(), options["max_body_mib"] and int(options["max_body_mib"] * 2**20)
    return ServerOptions(
        max_body_bytes=max_bytes or defaults.max_body_bytes,
        max_message_bytes=max_bytes or defaults.max_message_bytes,
        stuck_after_s=options["stuck_after"],
        api_keys=collect_api_keys(options["api_keys"], options["api_key_file"], os.environ),
        tls_key=key, tls_cert=cert,
        cross_origin=CrossOrigin(origins, _values(options["allow_methods"]) or ("*",),
                                 _values(options["allow_headers"]) or ("*",),
                                 options["allow_credentials"]) if origins else None,
        http_workers=options["http_workers"],
        logs_requests=options["log_requests"],
        otlp_endpoint=options["otlp_endpoint"])


def _tls_files(options: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    """(key, certificate), both readable, or neither."""
    key, cert = options["ssl_keyfile"], options["ssl_certfile"]
    if options["ssl"]:
        key = key or _path_in("SSL_KEYFILE")
        cert = cert or _path_in("SSL_CERTFILE")
    if bool(key) != bool(cert) or (options["ssl"] and not key):
        raise ConfigError("TLS needs a private key and a certificate; give --ssl_keyfile and --ssl_certfile, or --ssl "
                          "with both SSL_KEYFILE and SSL_CERTFILE set")
    for file in filter(None, (key, cert)):
        if not os.access(file, os.R_OK):
            raise ConfigError(f"the TLS file {file} cannot be read; name a PEM file that this user may read")
    if key and cert:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{key} and {cert} are no pair for TLS ({error}); name PEM files of a private key "
                              "without a password and of its certificate") from None
    return key, cert


def _path_in(variable: str) -> Path | None:
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def _values(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for text in given for value in text.replace(",", " ").split())


def _joined(arguments: list[str]) -> list[str]:
    """With the values that follow a list option as one value."""
    joined: list[str] = []
    is_in_list = False
    for argument in arguments:
        if argument.startswith("-"):
            is_in_list = argument.lstrip("-").replace("-", "_") in _LISTS  # --option=value has just that one
            joined.append(argument)
        elif is_in_list and not joined[-1].startswith("-"):
            joined[-1] += "," + argument
        else:
            joined.append(argument)
    return joined
