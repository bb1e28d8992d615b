"""OpenAI's Agents SDK at the demo model: its tool loop over both of OpenAI's APIs, at once and streamed."""

from __future__ import annotations

import asyncio

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from tests.examples.conftest import MODEL

set_tracing_disabled(True)


@pytest.fixture
def called():
    return []


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def agent(request, base_url, called):
    @function_tool
    def add(a: int, b: int) -> int:
        """Compute the sum of two numbers"""
        called.append("add")
        return a + b

    @function_tool
    def mul(a: int, b: int) -> int:
        """Compute the product of two numbers"""
        called.append("mul")
        return a * b

    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return Agent(name="calculator", model=request.param(MODEL, client), tools=[add, mul],
                 model_settings=ModelSettings(temperature=0))


def test_the_tool_loop_ends_with_the_right_number(agent, called):
    result = asyncio.run(Runner.run(agent, "Compute (3+5)*2"))
    assert called == ["add", "mul"] and "16" in result.final_output


def test_the_streamed_tool_loop_ends_with_the_right_number(agent, called):
    async def run() -> tuple[str, str]:
        result, text = Runner.run_streamed(agent, "Compute (3+5)*2"), ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        return result.final_output, text

    final, text = asyncio.run(run())
    assert called == ["add", "mul"] and "16" in final and text.endswith(final)
