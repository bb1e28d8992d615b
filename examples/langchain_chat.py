"""LangChain's ChatOpenAI: an answer, a stream, and tools."""

from __future__ import annotations

import os

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI

base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:23333/v1")
api_key = os.environ.get("OPENAI_API_KEY", "none")
model = OpenAI(base_url=base_url, api_key=api_key).models.list().data[0].id
chat = ChatOpenAI(base_url=base_url, api_key=api_key, model=model, temperature=0)

messages = [HumanMessage("My name is Ada.")]
messages += [chat.invoke(messages), HumanMessage("What is my name?")]
for chunk in chat.stream(messages):
    print(chunk.content, end="", flush=True)
print()


@tool
def add(a: int, b: int) -> int:
    """Compute the sum of two numbers"""
    return a + b


@tool
def mul(a: int, b: int) -> int:
    """Compute the product of two numbers"""
    return a * b


tools = {"add": add, "mul": mul}
with_tools = chat.bind_tools(list(tools.values()))
messages = [HumanMessage("Compute (3+5)*2")]
while True:
    answer: AIMessage = with_tools.invoke(messages)
    messages.append(answer)
    if not answer.tool_calls:
        break
    messages += [ToolMessage(tools[call["name"]].invoke(call["args"]), tool_call_id=call["id"])
                 for call in answer.tool_calls]
print(answer.content)
