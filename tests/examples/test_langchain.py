"""LangChain's ChatOpenAI at the demo model: answers, streams, batches, tools and structured output."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.examples.conftest import MODEL

QUESTION = "What is seven plus twelve?"
ANSWER = "Seven plus twelve is nineteen."


@tool
def add(a: int, b: int) -> int:
    """Compute the sum of two numbers"""
    return a + b


@tool
def mul(a: int, b: int) -> int:
    """Compute the product of two numbers"""
    return a * b


TOOLS = {"add": add, "mul": mul}


class Reply(BaseModel):
    """What kind of question it was."""

    kind: Literal["sum", "product"]


@pytest.fixture(scope="module")
def chat(base_url):
    return ChatOpenAI(base_url=base_url, api_key="none", model=MODEL, temperature=0, max_retries=0)


def test_an_answer_has_its_counts(chat):
    answer = chat.invoke([SystemMessage("You are a helpful assistant."), HumanMessage("My name is Ada.")])
    assert "Ada" in answer.content and answer.response_metadata["finish_reason"] == "stop"
    counts = answer.usage_metadata
    assert counts["total_tokens"] == counts["input_tokens"] + counts["output_tokens"] > 2


def test_a_stream_and_a_batch_say_the_same(chat):
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER
    assert [answer.content for answer in chat.batch([QUESTION] * 3)] == [ANSWER] * 3

    async def streamed() -> str:
        return "".join([chunk.content async for chunk in chat.astream(QUESTION)])

    assert asyncio.run(streamed()) == ANSWER


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_loop_ends_with_the_right_number(chat, is_streamed):
    bound, messages, called = chat.bind_tools(list(TOOLS.values())), [HumanMessage("Compute (3+5)*2")], []
    while True:
        if is_streamed:
            first, *rest = bound.stream(messages)
            answer = sum(rest, first)
        else:
            answer = bound.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            break
        called += [call["name"] for call in answer.tool_calls]
        messages += [ToolMessage(TOOLS[call["name"]].invoke(call["args"]), tool_call_id=call["id"])
                     for call in answer.tool_calls]
    assert called == ["add", "mul"] and "16" in answer.content


def test_a_demanded_tool_is_called(chat):
    answer = chat.bind_tools(list(TOOLS.values()), tool_choice="mul").invoke("Hello!")
    assert [call["name"] for call in answer.tool_calls] == ["mul"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_an_object_of_the_class(chat, method):
    assert isinstance(chat.with_structured_output(Reply, method=method).invoke(QUESTION), Reply)
