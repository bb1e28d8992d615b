"""HTTP connection: OpenAI's API for the blocking sessions, as connection.py is gRPC's. Failures are ChatErrors.

The standard library's client, and a connection for each request: so another thread can end an answer whatever it waits
for, by closing that connection, which is how this API stops a generation. Used by chat_client.py."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from client.connection import CONTROL_TIMEOUT_S
from client.errors import ChatError, DeadlineError, ServerFailedError
from client.http_target import HttpTarget
from client.openai_wire import CHAT_PATH, HEALTH_PATH, MODELS_PATH, AnswerReader, encode_chat, refusal
from client.server_info import ServerInfo
from client.wire import Increment

READ_BYTES = 65536  # at most, of what has come


class HttpConnection:
    """As connection.Connection; any number of threads may use it at once.

    model  which of the server's models is asked; one that it does not have, or None, is its first"""

    def __init__(self, target: HttpTarget, model: str | None) -> None:
        self.target = target
        self._wanted = model
        self._model: str | None = None
        self._answers: dict[int, Exchange] = {}  # by session id

    def infer(self, inputs: Mapping[str, Any]) -> Generator[Increment, None, None]:
        """The increments of one answer; closing the generator ends it on the server. Raises ChatErrors."""
        reader = AnswerReader()
        body = encode_chat(inputs, self._model or self._ask_model())
        exchange = self._answers[inputs["CORRID"]] = Exchange(self.target, self.target.timeout_s)
        try:
            with exchange.translated_errors():
                response = exchange.send("POST", CHAT_PATH, body)
                if response.status != 200:
                    self._model = None  # it may be that the server has another by now
                    raise refusal(response.status, response.read(), self.target.address)
                while data := exchange.read(response):
                    yield from reader.feed(data)
            yield from reader.end()
        except ChatError:
            if not exchange.is_left:
                raise
        finally:
            if self._answers.get(inputs["CORRID"]) is exchange:  # sessions may share an id: here it names nothing
                del self._answers[inputs["CORRID"]]
            exchange.close()
        if exchange.is_left:
            yield from reader.aborted()

    def command(self, inputs: Mapping[str, Any]) -> None:
        """STOP: ends the answer that a session is getting. There is nothing else to command."""
        if (exchange := self._answers.get(inputs["CORRID"])) is not None:
            exchange.leave()

    def is_ready(self) -> bool:
        """Whether the server answers and can chat; one without /health can if it lists its models."""
        try:
            status, _ = self._get(HEALTH_PATH)
            return status == 200 or (status == 404 and self._get(MODELS_PATH)[0] == 200)
        except ChatError:
            return False

    def server_info(self) -> ServerInfo:
        """What the server says of the model that is asked. Raises ServerAwayError."""
        status, body = self._get(MODELS_PATH)
        if status != 200:
            raise refusal(status, body, self.target.address)
        return model_info(body, self._wanted, self.target.address)

    def close(self) -> None:
        """Ends running requests too."""
        for exchange in list(self._answers.values()):
            exchange.leave()

    def _ask_model(self) -> str:
        self._model = self.server_info().model_name
        return self._model

    def _get(self, path: str) -> tuple[int, bytes]:
        exchange = Exchange(self.target, CONTROL_TIMEOUT_S)
        try:
            with exchange.translated_errors():
                response = exchange.send("GET", path)
                return response.status, response.read()
        finally:
            exchange.close()


class Exchange:
    """One request and its answer, on a connection of its own, which any thread may leave."""

    def __init__(self, target: HttpTarget, timeout_s: float | None) -> None:
        self._target = target
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._http = (http.client.HTTPConnection(target.host, target.port) if target.tls is None else
                      http.client.HTTPSConnection(target.host, target.port, context=target.tls))
        self._socket: socket.socket | None = None
        self.is_left = False

    def send(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """Connects and asks; returns when the answer's head is there."""
        self._http.timeout = self._left_s(CONTROL_TIMEOUT_S)
        try:
            self._http.connect()
        except TimeoutError:
            raise ConnectionError("no connection in time") from None
        # Kept here, because http.client drops its own with the answer's head where the server closes behind it.
        self._socket = self._http.sock
        if self.is_left:
            raise ConnectionAbortedError("left")
        self._socket.settimeout(self._left_s())
        self._http.request(method, self._target.path + path, body, self._target.headers)
        return self._http.getresponse()

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """What has come, or comes next; empty at the end."""
        if not response.isclosed():
            self._socket.settimeout(self._left_s())
        return response.read1(READ_BYTES)

    def leave(self) -> None:
        """Ends the exchange: the thread that waits for it sees the connection closed."""
        self.is_left = True
        if self._socket is not None:
            with suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.close()
        if self._socket is not None:
            self._socket.close()

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise DeadlineError(f"{self._target.address} did not answer in time; allow a longer timeout_s") from None
        except (OSError, http.client.IncompleteRead) as error:
            raise self._target.no_connection(error) from error
        except http.client.HTTPException as error:
            raise ServerFailedError(f"{self._target.address} does not speak HTTP ({error!r}); check the address"
                                    ) from error

    def _left_s(self, most_s: float | None = None) -> float | None:
        if self._deadline_s is None:
            return most_s
        left_s = max(0.001, self._deadline_s - time.monotonic())
        return left_s if most_s is None else min(left_s, most_s)


def model_info(body: bytes, wanted: str | None, address: str) -> ServerInfo:
    """Of the answer of /v1/models: the wanted model, or else the first."""
    try:
        cards = {card["id"]: card for card in json.loads(body)["data"]}
        card = cards.get(wanted) or next(iter(cards.values()))
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ServerFailedError(f"{address}{MODELS_PATH} lists no model; is this a server of OpenAI's API?") from None
    return ServerInfo(None, card["id"], card.get("max_model_len"))
