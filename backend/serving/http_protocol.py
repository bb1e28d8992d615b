"""HTTP protocol: uvicorn's on httptools, the cheaper one, where it is there, with the bound on headers that it lacks.

Used by every HTTP server of ours, before any key is looked at. Imports no torch."""

from __future__ import annotations

import functools

from uvicorn.protocols.http.h11_impl import H11Protocol


@functools.cache
def http_protocol(max_header_bytes: int) -> type:
    """The class for uvicorn's `http`. h11 has a bound itself, uvicorn's h11_max_incomplete_event_size."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return H11Protocol

    class BoundedHttpToolsProtocol(HttpToolsProtocol):
        _is_open = _is_in_headers = _has_body_data = False
        _num_header_bytes = 0  # in a row without any of a body; without those that came together with their beginning

        def on_message_begin(self) -> None:
            self._is_open, self._is_in_headers, self._num_header_bytes = True, True, 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._is_in_headers:  # the others, behind a body in chunks, would be added to what has been checked
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._is_in_headers = False
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._has_body_data = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._is_open = False
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            goes_on, self._has_body_data = self._is_open, False
            super().data_received(data)
            if not (goes_on and self._is_open):
                return
            self._num_header_bytes = 0 if self._has_body_data else self._num_header_bytes + len(data)
            if self._num_header_bytes > max_header_bytes and not self.transport.is_closing():
                self.transport.write(_HEADERS_TOO_LARGE)
                self.transport.close()

    return BoundedHttpToolsProtocol


_HEADERS_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
