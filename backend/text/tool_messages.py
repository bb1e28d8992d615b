"""Tool messages: results of calls, in the order of the calls that they answer.

Templates write no ids, so a model knows by the order alone which result is whose. Used by chat_template.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import TemplateError

RESULT_ROLES = ("tool", "environment", "ipython")  # OpenAI's, InternLM's and LMDeploy's, Llama's


def results_in_order(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages; results that follow several calls stand as the calls do, where their `tool_call_id` says whose
    they are. Raises TemplateError for an id that none of those calls has."""
    ordered: list[Mapping[str, Any]] = []
    call_ids: list[Any] = []  # of the calls which the results at the end of `ordered` answer
    num_results = 0
    for index, message in enumerate(messages):
        if message["role"] not in RESULT_ROLES:
            call_ids, num_results = [call.get("id") for call in message.get("tool_calls") or ()], 0
        elif call_ids:
            call_id = message.get("tool_call_id")
            if call_id is not None and call_id not in call_ids:
                raise TemplateError(f"messages[{index}].tool_call_id is {call_id!r}, which no call in the message "
                                    "before it has; send back the id of the call")
            num_results += 1
        ordered.append(message)
        if num_results > 1:
            ordered[-num_results:] = sorted(ordered[-num_results:], key=lambda result: _place(result, call_ids))
    return ordered


def _place(result: Mapping[str, Any], call_ids: Sequence[Any]) -> int:
    call_id = result.get("tool_call_id")
    return len(call_ids) if call_id is None else call_ids.index(call_id)
