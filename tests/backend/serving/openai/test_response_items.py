"""Items of the Responses API as the chat messages that they mean."""

from __future__ import annotations

from backend.serving.openai.response_items import to_messages


def test_instructions_come_first_and_developers_are_the_system():
    assert to_messages("Be kind.", [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hel"},
                                                        {"type": "input_text", "text": "lo"}]}]) == [
        {"role": "system", "content": "Be kind."}, {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"}]


def test_calls_belong_to_the_answer_before_them_and_results_name_their_call():
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    assert to_messages(None, [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I add."}]},
        call, {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "4"}]},
        call]) == [
        {"role": "assistant", "content": "I add.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "name": "add", "content": "4"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]}]
