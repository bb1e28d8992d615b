"""Response events: an answer of the Responses API as it grows, and each step of that as a server-sent event.

One builder makes the streamed and the unstreamed answer, so that they cannot differ. Knows no engine.
Used by responses.py."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_encode = msgspec.json.encode


class ResponseBuilder:
    """Each method takes what came next and returns the bytes of its events, ready to be sent.

    response  the answer: begun by the caller with what echoes the request, ended by `end`"""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = {**response, "status": "in_progress", "output": []}
        self._number = 0  # of the next event
        self._item: dict[str, Any] | None = None  # the output item that still grows
        self._pieces: list[str] = []  # its text, or its arguments
        self._logprobs: list[Mapping[str, Any]] = []
        self._delta_head = b""

    def begin(self) -> bytes:
        return self._response_event("response.created") + self._response_event("response.in_progress")

    def text(self, delta: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """More of the answer's text, with the log-probabilities of its tokens where they were asked for."""
        events = b""
        if self._item is None or self._item["type"] != "message":
            events = self._end_item("completed") + self._begin_message()
        self._pieces.append(delta)
        self._logprobs += logprobs
        return events + self._delta(delta, b',"logprobs":' + _encode(logprobs))

    def call(self, call_id: str, name: str) -> bytes:
        """A function call begins."""
        events = self._end_item("completed")
        events += self._begin_item({"id": new_id("fc"), "type": "function_call", "status": "in_progress",
                                    "call_id": call_id, "name": name, "arguments": ""})
        self._prepare_delta("response.function_call_arguments.delta", {})
        return events

    def arguments(self, delta: str) -> bytes:
        """More of the running call's arguments."""
        self._pieces.append(delta)
        return self._delta(delta)

    def end(self, usage: Mapping[str, Any], incomplete_reason: str | None) -> bytes:
        """The answer is over, complete where there is no reason why not. An empty one has an empty message."""
        events = b""
        if self._item is None and not self.response["output"]:
            events = self._begin_message()
        status = "completed" if incomplete_reason is None else "incomplete"
        events += self._end_item(status)
        self.response |= {"status": status, "usage": usage}
        self.response |= ({"completed_at": int(time.time())} if incomplete_reason is None else
                          {"incomplete_details": {"reason": incomplete_reason}})
        return events + self._response_event(f"response.{status}")

    def fail(self, code: str, message: str) -> bytes:
        """The answer cannot be completed: what has come stays in it."""
        events = self._end_item("incomplete")
        self.response |= {"status": "failed", "error": {"code": code, "message": message}}
        return events + self._response_event("response.failed")

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.response["output"])}

    def _begin_message(self) -> bytes:
        events = self._begin_item({"id": new_id("msg"), "type": "message", "status": "in_progress",
                                   "role": "assistant", "content": []})
        events += self._event("response.content_part.added",
                              {**self._place, "content_index": 0, "part": _text_part("", [])})
        self._prepare_delta("response.output_text.delta", {"content_index": 0})
        return events

    def _begin_item(self, item: dict[str, Any]) -> bytes:
        self._item, self._pieces, self._logprobs = item, [], []
        return self._event("response.output_item.added", {"output_index": len(self.response["output"]), "item": item})

    def _end_item(self, status: str) -> bytes:
        if self._item is None:
            return b""
        item, whole = self._item, "".join(self._pieces)
        item["status"] = status
        if item["type"] == "message":
            place = {**self._place, "content_index": 0}
            part = _text_part(whole, self._logprobs)
            item["content"] = [part]
            events = self._event("response.output_text.done", {**place, "text": whole, "logprobs": self._logprobs})
            events += self._event("response.content_part.done", {**place, "part": part})
        else:
            item["arguments"] = whole
            events = self._event("response.function_call_arguments.done",
                                 {**self._place, "name": item["name"], "arguments": whole})
        events += self._event("response.output_item.done", {"output_index": len(self.response["output"]), "item": item})
        self.response["output"].append(item)
        self._item = None
        return events

    def _prepare_delta(self, name: str, more: Mapping[str, Any]) -> None:
        # One per token: what stays the same while an item grows is encoded once.
        document = _encode({"type": name, **self._place, **more})
        self._delta_head = f"event: {name}\ndata: ".encode() + document[:-1] + b',"sequence_number":'

    def _delta(self, delta: str, more: bytes = b"") -> bytes:
        self._number += 1
        return b'%s%d,"delta":%s%s}\n\n' % (self._delta_head, self._number - 1, _encode(delta), more)

    def _response_event(self, name: str) -> bytes:
        return self._event(name, {"response": self.response})

    def _event(self, name: str, content: Mapping[str, Any]) -> bytes:
        document = _encode({"type": name, "sequence_number": self._number, **content})
        self._number += 1
        return f"event: {name}\ndata: ".encode() + document + b"\n\n"


def new_id(kind: str) -> str:
    """resp_…, msg_…, fc_…: an id that no other object has."""
    return f"{kind}_{uuid.uuid4().hex}"


def _text_part(text: str, logprobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
