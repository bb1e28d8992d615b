"""Chat with OpenAI's Python client: one answer at once, then a second turn as it grows."""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:23333/v1"),
                api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id

messages = [{"role": "user", "content": "My name is Ada."}]
answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
print(answer.choices[0].message.content)
print(f"({answer.usage.prompt_tokens} prompt tokens, {answer.usage.completion_tokens} new ones)")

messages += [{"role": "assistant", "content": answer.choices[0].message.content},
             {"role": "user", "content": "What is my name?"}]
for chunk in client.chat.completions.create(model=model, messages=messages, temperature=0, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
