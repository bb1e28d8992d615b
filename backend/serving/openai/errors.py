"""Errors: whatever goes wrong becomes OpenAI's `{"error": {message, type, param, code}}` with a true HTTP status.

Used by app.py, which registers the handlers, and by every endpoint, which raises ApiError."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from backend.errors import (
    CapacityError,
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    MillraceError,
    RequestError,
    TemplateError,
)

INVALID = "invalid_request_error"
JSON_LINES = "millrace.json_lines"  # true in the scope of a call whose stream is JSON lines, not events


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


# For the schema: every route may answer with these.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered; the message says what to change."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer now."}}


class ApiError(MillraceError):
    """An answer other than 2xx.

    status   HTTP status;  type, code  OpenAI's words for the kind of error, for programs; a 400's code is invalid_value
             where none is given
    param    the field that is wrong, where it is one
    headers  sent with it, such as Retry-After"""

    def __init__(self, status: int, message: str, type: str = INVALID, code: str | None = None,
                 param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.type, self.param = status, type, param
        self.code = code or ("invalid_value" if status == 400 else None)
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        return msgspec.json.encode({"error": {"message": _as_unicode(str(self)), "type": self.type,
                                              "param": self.param and _as_unicode(self.param), "code": self.code}})

    def in_stream(self, scope: Mapping[str, Any]) -> bytes:
        """As the last of a stream's events, or of its lines where the ASGI scope says that it has these."""
        return self.body() + b"\n" if scope.get(JSON_LINES) else b"data: " + self.body() + b"\n\n"

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def api_error(error: Exception) -> ApiError:
    """What a client is told of an error: ours in their own words, anything else in none."""
    match error:
        case UnicodeEncodeError():  # what a client said and we say back; our own words can all be encoded
            return ApiError(400, "the request holds a lone surrogate and is not valid Unicode; send valid UTF-8",
                            code="invalid_value")
        case ApiError():
            return error
        case RequestError():
            code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
            param, message = _FIELDS.get(error.field, error.field), str(error)
            if error.field in _FIELDS and message.startswith(error.field):
                message = param + message.removeprefix(error.field)
            return ApiError(400, message, code=code, param=param)
        case TemplateError():
            return ApiError(400, str(error), param=_template_field(str(error)))
        case CapacityError():
            return ApiError(429, str(error), "rate_limit_error", "queue_full", headers={"Retry-After": "1"})
        case DeadlineError():
            return ApiError(504, str(error), "timeout_error", "deadline_exceeded")
        case EngineDeadError():
            return ApiError(503, str(error), "server_error", "engine_unavailable", headers={"Retry-After": "5"})
        case MillraceError():
            return ApiError(500, str(error), "server_error")
    return ApiError(500, "the server failed; its log says why", "server_error", "internal_error")


# What the engine calls otherwise than every endpoint here.
_FIELDS = {"stop_ids": "stop_token_ids"}


def add_error_handlers(app: FastAPI) -> None:
    """Every error that an endpoint or the framework raises is answered in the one shape."""

    async def answer(_: Request, error: Exception) -> Response:
        return api_error(error).response()

    async def answer_validation(_: Request, error: RequestValidationError) -> Response:
        return validation_error(error).response()

    async def answer_http(_: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and isinstance(error.__cause__, (RecursionError, ValueError)):
            return _unreadable_body(error.__cause__).response()
        message = _HTTP_MESSAGES.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, code=_HTTP_CODES.get(error.status_code),
                        headers=error.headers).response()

    app.add_exception_handler(MillraceError, answer)
    app.add_exception_handler(UnicodeEncodeError, answer)
    app.add_exception_handler(RequestValidationError, answer_validation)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Exception, answer)


# What took the place of fields that OpenAI has retired.
_REPLACEMENTS = {"functions": "use tools, each {\"type\": \"function\", \"function\": …}",
                 "function_call": "use tool_choice in a request, and tool_calls in a message"}


def validation_error(error: RequestValidationError) -> ApiError:
    """400 with the field's name, of one fault: where a field may be of several kinds, of the kind that got furthest,
    where the kind itself is right. What is too long got to its end; and a wrong `type` explains all other faults."""
    fault = max(error.errors(), key=lambda one: (one["type"] == "too_long", len(one["loc"]),
                                                 not one["type"].endswith("_type"), one["loc"][-1:] == ("type",)))
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        return ApiError(400, f"the body is no JSON: {reason}; send a JSON object", code="invalid_json")
    kind = fault["type"]
    if fault["loc"][0] == "query":
        name = str(fault["loc"][1])
    else:
        name = _field_name(fault["loc"][1:], error.body, is_absent=kind == "missing")
    if kind == "union_tag_not_found" and isinstance(fault["input"], dict):  # it is `type` that tells ours apart
        name, kind = f"{name}.type", "missing"
    if kind == "extra_forbidden":
        return ApiError(400, f"the field {name} is not known here; leave it out", code="unknown_parameter", param=name)
    if kind == "none_required":
        cure = _REPLACEMENTS.get(name.rpartition(".")[2], "leave it out")
        return ApiError(400, f"{name} is not supported by this server; {cure}", code="unsupported_parameter",
                        param=name)
    if kind == "missing":
        return ApiError(400, f"the field {name} is missing; add it" if name else "the body is missing; send JSON",
                        code="missing_required_parameter", param=name or None)
    message = fault["msg"].removeprefix("Value error, ")
    if kind in ("union_tag_not_found", "model_attributes_type"):
        message = "Input should be an object"
    elif kind == "union_tag_invalid":
        tags = fault["ctx"]
        message = f"type {reprlib.repr(tags['tag'])} is not supported here; use one of {tags['expected_tags']}"
    return ApiError(400, f"{name}: {message}" if name else message, code="invalid_value", param=name or None)


def _template_field(message: str) -> str | None:
    """What a template's error speaks of: it begins with the place in the conversation, or is about variables."""
    if "template variables" in message:
        return "chat_template_kwargs"
    place = re.match(r"(?:messages|prompt|tools)\b(?:\[\d+\](?:\.\w+)?)?", message)
    return place and place[0]


def _unreadable_body(cause: RecursionError | ValueError) -> ApiError:
    """What json.loads refuses otherwise than by a fault of syntax: FastAPI keeps the reason as its error's cause."""
    if isinstance(cause, UnicodeDecodeError):
        reason = "it is not in UTF-8; send UTF-8, not compressed"
    elif isinstance(cause, RecursionError):
        reason = "it is nested too deeply; send flatter JSON"
    else:  # the one other ValueError: Python's bound for the digits of an integer
        reason = f"it holds a number of more than {sys.get_int_max_str_digits():,} digits; send a shorter one"
    return ApiError(400, f"the body cannot be read: {reason}", code="invalid_json")


def _field_name(place: Sequence[str | int], body: Any, is_absent: bool) -> str:
    """`messages[0].content`: of the place that pydantic names only what is in the body, not the alternatives' names.

    is_absent  the last part is what the body lacks"""
    name, value = "", body
    for number, part in enumerate(place, start=1):
        if isinstance(part, int) and isinstance(value, list):
            name, value = f"{name}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (is_absent and number == len(place))):
            name, value = f"{name}.{part}" if name else str(part), value.get(part)
    return name


def _as_unicode(text: str) -> str:
    """Without lone surrogates, which a client's own words may hold and no JSON can."""
    return text.encode("utf-8", errors="replace").decode()


_HTTP_MESSAGES = {404: "there is nothing at this path; the paths are in /openapi.json",
                  405: "this path takes another method; /openapi.json says which"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
