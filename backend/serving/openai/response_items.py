"""Items of the Responses API: what a conversation is made of there, and the chat messages that it means.

Items are plain dicts as they stand in the JSON, so that those of a request, of an answer and of a stored conversation
are one kind. Used by responses.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backend.errors import RequestError

Item = Mapping[str, Any]


def to_messages(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    """The conversation as a chat template reads it: instructions first, calls joined to the answer that made them."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    names: dict[str, str] = {}
    for item in items:
        if item["type"] == "function_call":
            names[item["call_id"]] = item["name"]
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(
                {"id": item["call_id"], "type": "function",
                 "function": {"name": item["name"], "arguments": item["arguments"]}})
        elif item["type"] == "function_call_output":
            call_id = item["call_id"]
            named = {"name": names[call_id]} if call_id in names else {}
            messages.append({"role": "tool", "tool_call_id": call_id, **named, "content": _text(item["output"])})
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": _text(item["content"])})
    return messages


def check_results(earlier: Iterable[Item], new: Iterable[Item]) -> None:
    """Raises RequestError for a new result of a call that nobody made."""
    call_ids = {item["call_id"] for item in earlier if item["type"] == "function_call"}
    for index, item in enumerate(new):
        if item["type"] == "function_call":
            call_ids.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in call_ids:
            field = f"input[{index}].call_id"
            raise RequestError(f"{field} is {item['call_id']!r}, which no call before it has; send back the call too, "
                               "and its id as it came", field)


def _text(content: str | Iterable[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)
