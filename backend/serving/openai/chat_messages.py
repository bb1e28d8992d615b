"""Chat messages: what a message may say by its role, and how chat templates take it.

What a template would write in a place where the model never saw it, or leave out without a word, is refused.
Used by chat.py and interactive.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from backend.errors import TemplateError
from backend.serving.openai.chat_schema import ChatMessage
from backend.serving.openai.errors import ApiError
from backend.text.tool_messages import RESULT_ROLES

# Fields that only some roles have. Clients send back whole answers, so an assistant's may hold all that answers do.
_ROLES_OF = {"tool_calls": ("assistant",), "parsed": ("assistant",), "annotations": ("assistant",),
             "tool_call_id": RESULT_ROLES}


def template_messages(messages: Sequence[ChatMessage], field: str) -> list[dict[str, Any]]:
    """The messages as templates take them.

    field  of the endpoint that has them
    Raises ApiError for a message without content, or with what has no place in its role."""
    for index, message in enumerate(messages):
        _check(message, f"{field}[{index}]")
    return [_plain(message) for message in messages]


@contextmanager
def messages_called(field: str) -> Iterator[None]:
    """Errors of the template name the field in which an endpoint has the messages."""
    try:
        yield
    except TemplateError as error:
        raise TemplateError(re.sub(r"^messages(?=\[)", field, str(error))) from None


def _check(message: ChatMessage, place: str) -> None:
    for name, roles in _ROLES_OF.items():
        if message.role not in roles and getattr(message, name) not in (None, []):
            raise ApiError(400, f"{place}.{name} has no place in a message of the role {message.role}; leave it out, "
                           f"or use the role {roles[0]}", param=f"{place}.{name}")
    if message.content is None and not message.tool_calls:
        raise ApiError(400, f"{place}.content is missing; give text", code="missing_required_parameter",
                       param=f"{place}.content")


def _plain(message: ChatMessage) -> dict[str, Any]:
    given = message.model_dump(exclude_none=True, exclude={"annotations"})
    return given | {"role": "system"} if message.role == "developer" else given
