"""HTTP protocol: uvicorn's on httptools, with the bounds that it lacks: on the headers' size, on the time in which they
come, and on how long a client may leave what was sent to it unread.

Used by every HTTP server of ours, before any key is looked at. Imports no torch."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend.serving.server_options import ServerOptions


def http_protocol(options: ServerOptions) -> type[HttpToolsProtocol]:
    """The class for uvicorn's `http`."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"options": options})


class _BoundedProtocol(HttpToolsProtocol):
    options: ServerOptions
    _is_open = _is_in_headers = _has_body_data = False
    _num_header_bytes = 0  # in a row without any of a body; without those that came together with their beginning
    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._is_open, self._is_in_headers, self._num_header_bytes = True, True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_headers:  # the others, behind a body in chunks, would be added to what has been checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._end_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_body_data = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_open = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        goes_on, self._has_body_data = self._is_open, False
        if not goes_on and self._headers_due is None:
            self._expect_headers()
        super().data_received(data)
        if not (goes_on and self._is_open):
            return
        self._num_header_bytes = 0 if self._has_body_data else self._num_header_bytes + len(data)
        if self._num_header_bytes > self.options.max_header_bytes and not self.transport.is_closing():
            self._refuse(_HEADERS_TOO_LARGE)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._watch_reading()
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None
        super().resume_writing()

    def _watch_reading(self) -> None:
        num_unread = self.transport.get_write_buffer_size()
        self._reading_due = self.loop.call_later(self.options.reading_timeout_s, self._check_reading, num_unread)

    def _check_reading(self, num_unread: int) -> None:
        """Ends the connection unless the client has read some of so many bytes."""
        if self.transport.get_write_buffer_size() < num_unread:
            self._watch_reading()
        else:
            self.transport.abort()

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(self.options.body_timeout_s, self._give_up)

    def _end_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # they came ahead of the next call's turn
            self._expect_headers()
        else:
            self._refuse(_HEADERS_TOO_LATE)

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()


_REFUSAL = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_HEADERS_TOO_LARGE = _REFUSAL % b"431 Request Header Fields Too Large"
_HEADERS_TOO_LATE = _REFUSAL % b"408 Request Timeout"
