"""Streamed and unstreamed answers say the same, at every endpoint, however the engine cuts the tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from backend.model_source import open_model
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, TokenLogprobs
from backend.serving.openai.app import build_app
from backend.serving.openai.context import ApiContext
from backend.text.front_end import TextFrontEnd
from tests.backend.serving.openai.conftest import CHECKPOINT

NUM_PROMPT = 7
CALL = '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 1, "b": "}"}}<|action_end|>'


@dataclass(slots=True)
class CutEngine:
    """Answers every request with the same tokens, in pieces of the given sizes."""

    token_ids: Sequence[int]
    reason: FinishReason
    sizes: Sequence[int]
    session_len: int = 4096
    max_requests: int = 4096
    _numbers: Any = field(default_factory=itertools.count)

    def new_request_id(self) -> str:
        return str(next(self._numbers))

    def check_length(self, num_tokens: int) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateOutput, None]:
        cuts = [0, *itertools.accumulate(self.sizes), len(self.token_ids)]
        bounds = sorted({min(cut, len(self.token_ids)) for cut in cuts} | {0, len(self.token_ids)})
        prompt_logprobs = tuple(TokenLogprobs(token_id, -1.0) for token_id in request.token_ids[1:])
        for begin, end in itertools.pairwise(bounds) if len(bounds) > 1 else [(0, 0)]:
            ids = tuple(self.token_ids[begin:end])
            logprobs = tuple(TokenLogprobs(token_id, -token_id / 100) for token_id in ids)
            yield GenerateOutput(
                request.request_id, ids, self.reason if end == len(self.token_ids) else None, NUM_PROMPT, 0, end,
                logprobs if request.sampling.logprobs is not None else (),
                prompt_logprobs=prompt_logprobs if begin == 0 and request.prompt_logprobs is not None else ())

    async def finish(self, request: GenerateRequest, num_completion_tokens: int) -> None:
        pass


@cache
def front_end() -> TextFrontEnd:
    return TextFrontEnd(open_model(CHECKPOINT, "internlm2"))


@cache
def app() -> FastAPI:
    return build_app(None)


def events(body: str) -> list[dict[str, Any]]:
    """The documents of server-sent events, [DONE] left out."""
    found = [event.rpartition("data: ")[2] for event in body.split("\n\n") if event]
    return [json.loads(event) for event in found if event != "[DONE]"]


def joined_chat(body: str) -> dict[str, Any]:
    content, logprobs, calls, reason = None, [], [], None
    for choice in (choice for event in events(body) for choice in event["choices"]):
        if choice["delta"].get("content") is not None:
            content = (content or "") + choice["delta"]["content"]
        logprobs += choice["logprobs"]["content"] if choice["logprobs"] else []
        for call in choice["delta"].get("tool_calls", ()):
            if call["index"] == len(calls):
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
        reason = choice["finish_reason"]
    return {"content": content, "logprobs": logprobs, "calls": calls, "reason": reason}


def whole_chat(body: dict[str, Any]) -> dict[str, Any]:
    choice, = body["choices"]
    calls = choice["message"].get("tool_calls") or ()
    return {"content": choice["message"]["content"], "logprobs": (choice["logprobs"] or {}).get("content", []),
            "calls": [[call["function"]["name"], call["function"]["arguments"]] for call in calls],
            "reason": choice["finish_reason"]}


def joined_completion(body: str) -> dict[str, Any]:
    parts = [choice for event in events(body) for choice in event["choices"]]
    names = ("tokens", "token_logprobs", "text_offset")
    logprobs = {name: [value for part in parts for value in part["logprobs"][name]] for name in names}
    return {"text": "".join(part["text"] for part in parts), **logprobs, "reason": parts[-1]["finish_reason"]}


def whole_completion(body: dict[str, Any]) -> dict[str, Any]:
    choice, = body["choices"]
    names = ("tokens", "token_logprobs", "text_offset")
    return {"text": choice["text"], **{name: choice["logprobs"][name] for name in names},
            "reason": choice["finish_reason"]}


def joined_response(body: str) -> list[dict[str, Any]]:
    """The items as the deltas give them; the last event has to have the same."""
    found = events(body)
    grown: list[dict[str, Any]] = []
    for event in found:
        kind = event["type"]
        if kind == "response.output_item.added":
            grown.append({"type": event["item"]["type"], "name": event["item"].get("name"), "text": "", "logprobs": []})
        elif kind.endswith(".delta"):
            grown[event["output_index"]]["text"] += event["delta"]
            grown[event["output_index"]]["logprobs"] += event.get("logprobs", [])
    assert grown == whole_response(found[-1]["response"])[:-1]
    return [*grown, found[-1]["response"]["status"]]


def whole_response(body: dict[str, Any]) -> list[Any]:
    items = []
    for item in body["output"]:
        part = item["content"][0] if item["type"] == "message" else {"text": item["arguments"], "logprobs": []}
        items.append({"type": item["type"], "name": item.get("name"), "text": part["text"],
                      "logprobs": part["logprobs"]})
    return [*items, body["status"]]


def joined_lines(body: str) -> dict[str, Any]:
    parts = [json.loads(line) for line in body.split("\n") if line]
    return whole_turn({**parts[-1], "text": "".join(part["text"] for part in parts)})


def whole_turn(body: dict[str, Any]) -> dict[str, Any]:
    """Without the counts: what an engine had generated when a stop text was met depends on how it cuts."""
    return {name: body[name] for name in ("text", "finish_reason", "input_tokens")}


def joined_generate(body: str) -> list[Any]:
    parts = events(body)
    ids = [token for part in parts for token in part["output_ids"]]
    assert ids == [token for part in parts for _, token in part["meta_info"]["output_token_logprobs"]]
    return ["".join(part["text"] for part in parts), parts[-1]["meta_info"]["finish_reason"]]


def whole_generate(body: dict[str, Any]) -> list[Any]:
    assert body["output_ids"] == [token for _, token in body["meta_info"]["output_token_logprobs"]]
    return [body["text"], body["meta_info"]["finish_reason"]]


FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
HELLO = [{"role": "user", "content": "Hello!"}]
# Endpoint → (path, fields, what a stream adds up to, the same of an unstreamed answer)
ENDPOINTS: dict[str, tuple[str, dict[str, Any], Callable[[str], Any], Callable[[dict[str, Any]], Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "internlm2", "messages": HELLO, "logprobs": True}, joined_chat,
             whole_chat),
    "chat with tools": ("/v1/chat/completions", {"model": "internlm2", "messages": HELLO, "tools": [
        {"type": "function", "function": FUNCTION}]}, joined_chat, whole_chat),
    "completions": ("/v1/completions", {"model": "internlm2", "prompt": "Hello", "logprobs": 0}, joined_completion,
                    whole_completion),
    "completions with echo": ("/v1/completions", {"model": "internlm2", "prompt": "Hello", "logprobs": 0,
                                                  "echo": True}, joined_completion, whole_completion),
    "responses": ("/v1/responses", {"input": "Hello!", "top_logprobs": 0}, joined_response, whole_response),
    "responses with tools": ("/v1/responses", {"input": "Hello!", "tools": [{"type": "function", **FUNCTION}]},
                             joined_response, whole_response),
    "interactive": ("/v1/chat/interactive", {"prompt": "Hello!"}, joined_lines, whole_turn),
    "generate": ("/generate", {"prompt": "Hello", "return_logprob": True}, joined_generate, whole_generate),
}

PIECES = st.one_of(st.text(max_size=8), st.sampled_from(["stop", "st", " the end", CALL, CALL[:40], "咖啡", "🦊"]))
TEXTS = st.lists(PIECES, max_size=6).map("".join)
CUTS = st.lists(st.integers(1, 5), max_size=40)


@pytest.mark.parametrize("name", ENDPOINTS)
@given(text=TEXTS, ids=st.lists(st.integers(3, 3000), max_size=5), cuts=CUTS, ends_by_id=st.booleans(),
       stop=st.sampled_from([None, "stop", ["top", "🦊e"], ['"b"', "|>", "end"]]), min_tokens=st.integers(0, 6))
def test_streamed_and_unstreamed_answers_are_equal(name, text, ids, cuts, ends_by_id, stop, min_tokens):
    path, fields, join, whole = ENDPOINTS[name]
    tokenizer = front_end().tokenizer
    if name == "responses with tools":  # whose items have an order: the grammar allows nothing behind a call but calls
        text, ids = text.partition(CALL)[0] + CALL * text.count(CALL), []
    token_ids = [*tokenizer.encode(text), *ids]
    if ends_by_id:
        token_ids.append(tokenizer.eos_token_id)
    reason = FinishReason.STOP if ends_by_id else FinishReason.LENGTH

    async def ask(sizes: Sequence[int], **more: Any) -> httpx.Response:
        app().state.context = ApiContext(front_end(), CutEngine(token_ids, reason, sizes), ("internlm2",))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://test") as client:
            response = await client.post(path, json={**fields, "stop": stop, "min_tokens": min_tokens, **more})
        assert response.status_code == 200, response.text
        return response

    unstreamed = whole(asyncio.run(ask([1] * len(token_ids))).json())
    streamed = join(asyncio.run(ask(cuts, stream=True)).text)
    assert streamed == unstreamed
