"""`python -m client.webui HOST:33337 internlm`, or a URL: a page for talking to a served model, at http://127.0.0.1:6006.

Needs the extra `webui`. Everything the page loads is served from here, so it works without internet access."""

from __future__ import annotations

import signal
import threading

import click

from client import ChatClient, ChatError, Tls
from protocol.ports import WEBUI_PORT
from terminal.command_line import CONTEXT_SETTINGS, run


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("address", metavar="HOST[:PORT]|URL")
@click.argument("model_name", required=False)
@click.option("--server_name", default="127.0.0.1", show_default=True,
              help="Where to serve the page; 0.0.0.0 lets other machines open it.")
@click.option("--server_port", default=WEBUI_PORT, show_default=True)
@click.option("--share", is_flag=True, help="Also make a public link, through Gradio's servers. Never done unasked.")
@click.option("--api_key", envvar="MILLRACE_API_KEY", help="The server's key, also from MILLRACE_API_KEY.")
@click.option("--tls", is_flag=True, help="Encrypt.")
@click.option("--tls_ca", type=click.Path(exists=True, dir_okay=False), help="Encrypt and trust this PEM file.")
def main(address: str, model_name: str | None, server_name: str, server_port: int, share: bool,
         api_key: str | None, tls: bool, tls_ca: str | None) -> None:
    """A page for talking to the model that a server on HOST serves, under MODEL_NAME.

    Over gRPC, or at a URL of OpenAI's API, whoever serves that.

    \b
    Examples:
      python -m client.webui 127.0.0.1:33337 internlm
      python -m client.webui http://127.0.0.1:23333
      python -m client.webui https://gpu-server:23333 --tls_ca ca.pem"""
    try:
        from client.webui.page import build_ui, launch
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the web UI needs {error.name}, which is not installed: "
            "pip install -e '.[webui]' in Millrace's folder") from None
    client = ChatClient(address, api_key, Tls(ca=tls_ca) if tls or tls_ca else None, model=model_name)
    ui = build_ui(client, model_name or client.address)
    try:
        link = launch(ui, server_name, server_port, share)
    except OSError:
        raise click.ClickException(f"{server_name}:{server_port} is taken, or is no address of this machine; "
                                   "use another --server_port or --server_name") from None
    click.echo(f"Talk to {model_name or address} at {link} (Ctrl-C stops)")
    stopped = threading.Event()
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: stopped.set())
    stopped.wait()
    ui.close(verbose=False)
    client.close()


if __name__ == "__main__":
    run(main, ChatError)
