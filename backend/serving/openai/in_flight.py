"""In flight: the calls that are being answered now, and what can end one early: its deadline, or the server's stop.

An ASGI middleware; a call that it ends is told so, with 504 or 503, or as the last event of its stream. Used by
door.py; endpoints hand a deadline that a body asks for to `limit_time`."""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar
from typing import Any

from backend.serving.deadline import Deadline
from backend.serving.openai.errors import ApiError
from backend.serving.running_tasks import RunningTasks

TIMEOUT_HEADER = b"x-request-timeout"
OPEN_PATH = "/health"  # probes carry no key and are answered whatever the server's state

current_deadline: ContextVar[Deadline | None] = ContextVar("current_deadline", default=None)


def limit_time(timeout_s: float | None) -> None:
    """The call that the current task answers has so many seconds from its arrival; None: what it has already."""
    deadline = current_deadline.get()
    if timeout_s is not None and deadline is not None:
        deadline.limit(timeout_s)


class InFlight:
    """Wraps an application. Belongs to one event loop."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running = RunningTasks()

    @property
    def is_stopping(self) -> bool:
        """Whether no more calls are taken."""
        return self._running.is_stopping

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, waits for the running ones, and ends those that take longer than `grace_s`."""
        await self._running.stop(grace_s)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self.is_stopping and scope["path"] != OPEN_PATH:
            await _stopping().response()(scope, receive, send)
            return
        answer = _Answer(send)
        deadline = Deadline(lambda: task.cancel())
        token = current_deadline.set(deadline)
        task = asyncio.create_task(self._app(scope, receive, answer.send))
        current_deadline.reset(token)
        self._running.add(task)
        try:
            timeout_s = _timeout(scope)
            if timeout_s is not None:
                deadline.limit(timeout_s)
            await asyncio.wait({task})
        except ApiError as error:  # the header is no number
            await _ended(task)
            await error.response()(scope, receive, send)
            return
        except asyncio.CancelledError:
            await _ended(task)
            raise
        finally:
            deadline.close()
            self._running.discard(task)
        if not task.cancelled():
            task.result()
        elif deadline.is_over:
            await answer.end(_overdue(deadline.timeout_s), scope, receive)
        elif self._running.is_aborting:
            await answer.end(_stopping(), scope, receive)
        else:
            raise asyncio.CancelledError


class _Answer:
    """What of an answer has been sent, so that it can be ended as far as it is."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._has_begun = self._is_complete = self._is_stream = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self._is_stream = any(name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                                  for name, value in message["headers"])
        else:
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, error: ApiError, scope: Any, receive: Any) -> None:
        """The error as an answer, or as the last event of a stream. Otherwise the connection closes in its middle."""
        if not self._has_begun:
            await error.response()(scope, receive, self._send)
        elif self._is_stream and not self._is_complete:
            await self._send({"type": "http.response.body", "body": error.in_stream(scope)})


async def _ended(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _timeout(scope: Any) -> float | None:
    """The header's seconds. Raises ApiError 400 for what is no such number."""
    for name, value in scope["headers"]:
        if name == TIMEOUT_HEADER:
            try:
                timeout_s = float(value)
            except ValueError:
                timeout_s = math.nan
            if not (0 < timeout_s < math.inf):
                raise ApiError(400, f"the header {TIMEOUT_HEADER.decode()} is no number of seconds above 0; send "
                               "one, such as 30", code="invalid_value", param="timeout")
            return timeout_s
    return None


def _overdue(timeout_s: float) -> ApiError:
    return ApiError(504, f"the answer was not complete within the request's timeout of {timeout_s:g} s; allow more "
                    "time, or ask for fewer tokens", "timeout_error", "deadline_exceeded")


def _stopping() -> ApiError:
    return ApiError(503, "the server is being stopped; send the request to another, or again later", "server_error",
                    "stopping", headers={"Retry-After": "5"})
