"""Long texts: what renders and tokenises them does so in a thread, so that no stream stands still meanwhile.

Used by the served models and by OpenAI's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from backend.errors import RequestError
from backend.text.tokenizer import LONG_TEXT_CHARACTERS

T = TypeVar("T")


def num_characters(*documents: Any) -> int:
    """About as many as a template has to read of messages and tools: calls and descriptions count too.

    Raises RequestError for what is nested so deeply that it cannot be written."""
    try:
        return sum(len(str(document)) for document in documents)
    except RecursionError:
        raise RequestError("the messages or tools are nested too deeply; send flatter ones") from None


async def read_text(size: int, read: Callable[..., T], *arguments: Any) -> T:
    """read(*arguments), which works on `size` characters: in a thread where that would keep other requests waiting."""
    if size < LONG_TEXT_CHARACTERS:
        return read(*arguments)
    return await asyncio.to_thread(read, *arguments)
