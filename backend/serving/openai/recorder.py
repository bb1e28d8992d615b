"""Recorder: every call has a request id and a record, whatever becomes of it; who asks is told where its time went.

An ASGI middleware, the outermost: counts answers by route and status, logs and traces calls, sends `x-request-id`, and
with the header `x-millrace-timing` the same header back (as the last comment of a stream). Used by door.py."""

from __future__ import annotations

import re
import uuid
from typing import Any

from backend.serving.openai.event_stream import DONE
from backend.serving.operations import Operations
from backend.serving.request_log import log_request
from backend.serving.request_record import RequestRecord, current_record

REQUEST_ID_HEADER = b"x-request-id"
TIMING_HEADER = b"x-millrace-timing"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Recorder:
    """Wraps an application."""

    def __init__(self, app: Any, operations: Operations) -> None:
        self._app = app
        self._operations = operations

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given_id = headers.get(REQUEST_ID_HEADER, b"")
        record = RequestRecord(given_id.decode() if _ID.fullmatch(given_id) else uuid.uuid4().hex)
        answer = _RecordedAnswer(send, record, headers.get(TIMING_HEADER, b"0") != b"0")
        token = current_record.set(record)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            current_record.reset(token)
            self._ended(scope, record, answer.status, headers.get(b"traceparent"))

    def _ended(self, scope: Any, record: RequestRecord, status: int, traceparent: bytes | None) -> None:
        # The path as the route has it: as many as there are routes, whatever clients ask for.
        route = getattr(scope.get("route"), "path", "other")
        operations, method = self._operations, scope["method"]
        operations.metrics.http_responses.labels(route, str(status)).inc()
        if operations.options.logs_requests:
            log_request(record, method, route, status)
        if operations.tracing is not None:
            operations.tracing.record(record, method, route, status, traceparent and traceparent.decode("latin-1"))


class _RecordedAnswer:
    """Sends an answer on. status: 499 as long as there is none, as where the client left."""

    __slots__ = ("_is_stream", "_owes_timing", "_record", "_send", "_wants_timing", "status")

    def __init__(self, send: Any, record: RequestRecord, wants_timing: bool) -> None:
        self._send, self._record, self._wants_timing = send, record, wants_timing
        self._is_stream = self._owes_timing = False
        self.status = 499

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._headers(message)}
        elif self._wants_timing and self._is_stream:
            message = {**message, "body": self._with_timing(message.get("body", b""), message.get("more_body", False))}
        await self._send(message)

    def _with_timing(self, event: bytes, is_more: bool) -> bytes:
        """An event of a stream; before its [DONE], or at its end where it has none, comes the comment."""
        if event.startswith((b"data:", b"event:")):  # /v1/chat/interactive streams lines that know no comments
            self._owes_timing = True
        if not self._owes_timing or (is_more and not event.endswith(DONE)):
            return event
        self._owes_timing = False
        comment = b": " + TIMING_HEADER + b": " + self._timing() + b"\n\n"
        return event[:-len(DONE)] + comment + DONE if event.endswith(DONE) else event + comment

    def _headers(self, message: Any) -> list[tuple[bytes, bytes]]:
        self.status = message["status"]
        headers = [*message.get("headers", ()), (REQUEST_ID_HEADER, self._record.request_id.encode())]
        names = {name.lower(): value for name, value in headers}
        self._is_stream = names.get(b"content-type", b"").startswith(b"text/event-stream")
        if self._wants_timing and not self._is_stream:
            headers.append((TIMING_HEADER, self._timing()))
        return headers

    def _timing(self) -> bytes:
        """`queued=0.0012, prefill=0.0305, decode=0.4120, preempted=0.0000`, seconds."""
        return ", ".join(f"{phase}={seconds:.4f}" for phase, seconds in self._record.timing().items()).encode()
