"""Tool answer: what the model's text says of calls for the client. Used by every endpoint that takes tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.requests import FinishReason
from backend.serving.openai.context import ApiContext
from backend.text.front_end import TextOutput
from backend.text.tools.call_parser import AnswerDelta, CallDelta, CallParser
from backend.text.tools.tool_plan import ToolPlan


class ToolAnswer:
    """One choice's text as content and calls; without a plan all of it is content.

    Put together, what `push` gives for the increments of an answer is the whole answer."""

    def __init__(self, context: ApiContext, plan: ToolPlan | None) -> None:
        self._parser = CallParser(context.front_end.tool_format) if plan is not None else None

    def push(self, increment: TextOutput) -> tuple[AnswerDelta, str | None]:
        """What an increment adds, and the finish reason as OpenAI names it: tool_calls where a whole call ends the
        answer."""
        reason = increment.finish_reason
        if self._parser is None:
            return AnswerDelta(increment.text), reason and reason.value
        delta = self._parser.push(increment.text)
        if reason is None:
            return delta, None
        rest = self._parser.flush(is_cut=reason is not FinishReason.STOP)
        delta = AnswerDelta(delta.content + rest.content, delta.calls + rest.calls)
        calls = reason is FinishReason.STOP and self._parser.ends_in_calls
        return delta, "tool_calls" if calls else reason.value


def call_delta(call: CallDelta) -> dict[str, Any]:
    """An entry of `tool_calls` in a chunk."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": call.arguments}}


def whole_calls(calls: Sequence[CallDelta]) -> list[dict[str, Any]]:
    """`tool_calls` of a message: all deltas of an answer put together."""
    whole: list[dict[str, Any]] = []
    for call in calls:
        if call.name is not None:
            whole.append({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}})
        whole[call.index]["function"]["arguments"] += call.arguments
    return whole
