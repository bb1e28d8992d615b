"""Command line of the client: talk to a server in the terminal. `python -m client HOST:33337`, or a URL, for HTTP.

A loop around one Session; a session that the server has lost is resumed unasked. Run by __main__.py."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import click

from client.chat_client import ChatClient
from client.connection import Tls
from client.errors import ChatError, SessionLostError
from client.session import Session
from client.wire import Sampling
from protocol.ports import GRPC_PORT, OPENAI_PORT
from terminal.command_line import CONTEXT_SETTINGS, sampling_options
from terminal.interrupt import Interrupt
from terminal.messages import messages

EPILOG = f"""\b
Examples:
  python -m client 127.0.0.1:{GRPC_PORT} internlm
  python -m client 127.0.0.1:{GRPC_PORT} internlm --prompt "Tell me a story about a fox." --temperature 0
  python -m client gpu-server internlm --session_id 7 --system "Be brief."
  python -m client http://127.0.0.1:{OPENAI_PORT} --api_key KEY
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("address", metavar="HOST[:PORT]|URL")
@click.argument("model_name", required=False)
@click.option("--session_id", type=click.IntRange(1, 2**64 - 1), 
              help="The session's id; drawn if not given. Over HTTP the server holds no session, so it names nothing.")
@click.option("--prompt", help="Answer this one message and leave.")
@click.option("--system", help="A system message that begins the conversation.")
@sampling_options({})
@click.option("--timeout_s", type=float, help="Give an answer up after so many seconds.")
@click.option("--api_key", envvar="MILLRACE_API_KEY", help="The server's key, also from MILLRACE_API_KEY.")
@click.option("--tls", is_flag=True, help="Encrypt.")
@click.option("--tls_ca", type=click.Path(exists=True, dir_okay=False), help="Encrypt and trust this PEM file.")
def main(address: str, model_name: str | None, session_id: int | None, prompt: str | None, system: str | None,
         timeout_s: float | None, api_key: str | None, tls: bool, tls_ca: str | None, **sampling: Any) -> None:
    """Talk to the model that a server on HOST serves: over gRPC, or at a URL of OpenAI's API, whoever serves that.

    MODEL_NAME may name the model you expect: where the server has another, it says so. An empty line sends your
    message; `end` forgets the conversation, `exit` leaves, Ctrl-C stops an answer."""
    sampling["ignore_eos"] = sampling["ignore_eos"] or None
    with ChatClient(address, api_key, Tls(ca=tls_ca) if tls or tls_ca else None, timeout_s, model_name) as client:
        served = client.server_info().model_name
        if model_name and served and model_name != served:
            click.echo(f"(this server's model is {served}, not {model_name})", err=True)
        conversation = _Conversation(client.session(session_id), system, Sampling(**sampling))
        try:
            if prompt is not None:
                conversation.answer(prompt)
            else:
                _talk(conversation)
        finally:
            with suppress(ChatError):  # a server that is away forgets by itself
                conversation.end()


def _talk(conversation: _Conversation) -> None:
    for message in messages():
        if message == "exit":
            return
        try:
            if message == "end":
                conversation.end()
                click.echo("(the conversation is forgotten)")
            elif message:
                conversation.answer(message)
        except ChatError as error:
            click.echo(f"error: {error}", err=True)


class _Conversation:
    """A session with the options that every turn of it has."""

    def __init__(self, session: Session, system: str | None, sampling: Sampling) -> None:
        self._session = session
        self._system = system
        self._sampling = sampling

    def answer(self, question: str) -> None:
        """Streams the answer to the terminal. A session that the server has lost is begun anew with its history."""
        try:
            self._stream(question)
        except SessionLostError:
            click.echo("(the server had forgotten the conversation; it is told again)", err=True)
            self._session.resume()
            self._stream(question)

    def end(self) -> None:
        """Forgets the conversation, on the server too."""
        self._session.end()

    def _stream(self, question: str) -> None:
        # A thread of its own, because Ctrl-C comes while this one waits for the server.
        with Interrupt(lambda: threading.Thread(target=self._cancel, daemon=True).start()):
            for part in self._session.stream(question, self._system, **self._sampling):
                click.echo(part.text, nl=False)
                if part.finish_reason == "length":
                    click.echo(" (cut: the length limit is reached)", nl=False)
                elif part.finish_reason == "abort":
                    click.echo(" (stopped)", nl=False)
        click.echo()

    def _cancel(self) -> None:
        try:
            self._session.cancel()
        except ChatError as error:
            click.echo(f"error: {error}", err=True)
