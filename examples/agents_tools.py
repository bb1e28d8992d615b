"""OpenAI's Agents SDK: an agent whose tools add and multiply; the SDK calls them and goes on until it is answered."""

from __future__ import annotations

import asyncio
import os

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # traces would be sent to OpenAI


@function_tool
def add(a: int, b: int) -> int:
    """Compute the sum of two numbers"""
    return a + b


@function_tool
def mul(a: int, b: int) -> int:
    """Compute the product of two numbers"""
    return a * b


async def main() -> None:
    client = AsyncOpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:23333/v1"),
                         api_key=os.environ.get("OPENAI_API_KEY", "none"))
    name = (await client.models.list()).data[0].id
    agent = Agent(name="calculator", model=OpenAIChatCompletionsModel(name, client), tools=[add, mul],
                  model_settings=ModelSettings(temperature=0))
    print((await Runner.run(agent, "Compute (3+5)*2")).final_output)


asyncio.run(main())
