"""Answers that follow a JSON schema, with OpenAI's Python client: given as a dictionary, and as a pydantic model."""

from __future__ import annotations

import json
import os
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:23333/v1"),
                api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
question = [{"role": "user", "content": "What is seven plus twelve?"}]

schema = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["sum"], "additionalProperties": False}
answer = client.chat.completions.create(
    model=model, messages=question, temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}})
print(json.loads(answer.choices[0].message.content))


class Animal(BaseModel):
    kind: Literal["fox", "rabbit", "owl"]
    is_wild: bool


parsed = client.chat.completions.parse(
    model=model, messages=[{"role": "user", "content": "Tell me a story about a fox."}], temperature=0,
    response_format=Animal)
print(repr(parsed.choices[0].message.parsed))
