"""Function calling with OpenAI's Python client: the model adds and multiplies through two functions of this program."""

from __future__ import annotations

import json
import os

from openai import OpenAI


def add(a: int, b: int) -> int:
    return a + b


def mul(a: int, b: int) -> int:
    return a * b


def described(function: object, description: str) -> dict[str, object]:
    """A function of two numbers, as the model is told of it."""
    number = {"type": "integer", "description": "a number"}
    return {"type": "function", "function": {
        "name": function.__name__, "description": description,
        "parameters": {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}}}


functions = {"add": add, "mul": mul}
tools = [described(add, "Compute the sum of two numbers"), described(mul, "Compute the product of two numbers")]

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:23333/v1"),
                api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

messages = [{"role": "user", "content": "Compute (3+5)*2"}]
while True:
    message = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0
                                             ).choices[0].message
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        result = functions[call.function.name](**json.loads(call.function.arguments))
        print(f"{call.function.name}({call.function.arguments}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
print(message.content)
