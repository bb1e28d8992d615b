"""OpenAI wire: a turn as a request of OpenAI's chat completions API, and its streamed answer as increments.

Pure functions and a reader, no connection. The tensors' names, wire.py's, are what a session says; here they become
fields. The API keeps no session, so each request brings the whole conversation; the server's prefix cache saves the
computing. Used by http_connection.py and async_http_connection.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from client.errors import ChatError, HistoryNeededError, RequestRefusedError, ServerFailedError, error_of_status
from client.wire import Increment

CHAT_PATH, MODELS_PATH, HEALTH_PATH = "/v1/chat/completions", "/v1/models", "/health"

# Tensors whose field has another name; of the others it is the same in lower case.
_FIELDS = {"MAX_NEW_TOKENS": "max_completion_tokens", "MIN_NEW_TOKENS": "min_tokens", "STOP_WORDS": "stop"}
_OF_SESSIONS = {"CORRID", "START", "MESSAGES"}
_REASONS = {"length": "length", "abort": "abort"}  # any other end is a stop


def encode_chat(inputs: Mapping[str, Any], model: str) -> bytes:
    """The body of a request for a streamed answer.

    Raises HistoryNeededError where the inputs lean on a session, RequestRefusedError for a value that JSON has not."""
    if "MESSAGES" not in inputs:
        raise HistoryNeededError("OpenAI's API keeps no sessions; send the whole conversation with each request")
    sampling = {_FIELDS.get(name, name.lower()): value for name, value in inputs.items() if name not in _OF_SESSIONS}
    try:
        return json.dumps({"model": model, "messages": json.loads(inputs["MESSAGES"]), "stream": True,
                           "stream_options": {"include_usage": True}, **sampling}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestRefusedError(f"the sampling options cannot be sent as JSON: {error}") from None


def refusal(status: int, body: bytes, address: str) -> ChatError:
    """The error that an answer other than 200 means."""
    message, code = _message(body)
    return error_of_status(status, message, code, address)


class AnswerReader:
    """Bytes of a stream of server-sent events in, increments out.

    The counts of tokens are the server's and come with the last increment; before it num_completion_tokens is the
    number of parts, and the others are 0."""

    def __init__(self) -> None:
        self._rest = b""
        self._num_parts = 0
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self.is_over = False  # the last increment is out

    def feed(self, data: bytes) -> list[Increment]:
        """What these bytes add. Raises ChatError for an error among the events."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [part for line in lines if line.startswith(b"data:") for part in self._event(line[5:].strip())]

    def end(self) -> list[Increment]:
        """The stream is closed: the last increment, where it is still owed and its reason is known."""
        return [self._last(self._reason)] if self._reason is not None and not self.is_over else []

    def aborted(self) -> list[Increment]:
        """This client has left the stream: the last increment, where it is still owed."""
        return [] if self.is_over else [self._last("abort")]

    def _event(self, data: bytes) -> list[Increment]:
        if data == b"[DONE]":
            return self.end()
        try:
            event = json.loads(data)
        except ValueError:
            raise ServerFailedError(f"the server sent an event that is no JSON: {data[:80]!r}") from None
        if "error" in event:
            message, code = _message(data)
            raise error_of_status(500, message, code, "the server")
        self._usage = event.get("usage") or self._usage
        parts = []
        for choice in event.get("choices") or ():
            text = (choice.get("delta") or {}).get("content") or ""
            if text:
                self._num_parts += 1
                parts.append(Increment(text, None, 0, 0, self._num_parts, 0))
            if (reason := choice.get("finish_reason")) is not None:
                self._reason = _REASONS.get(reason, "stop")
        return parts

    def _last(self, reason: str) -> Increment:
        self.is_over = True
        usage = self._usage or {}
        prompt, completion = usage.get("prompt_tokens", 0), usage.get("completion_tokens", self._num_parts)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Increment("", reason, prompt, cached, completion, prompt + completion)


def _message(body: bytes) -> tuple[str, str | None]:
    """Message and code of an error, as OpenAI writes it and as other servers do."""
    try:
        error = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:300] or "no reason given", None
    error = error.get("error", error) if isinstance(error, dict) else error
    if not isinstance(error, dict):
        return str(error), None
    code = error.get("code")
    return str(error.get("message") or error.get("detail") or error), code if isinstance(code, str) else None
