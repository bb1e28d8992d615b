"""A small server of OpenAI's API whose tokens are words: what a client meets, without an engine or our server's code.

In a thread of the test's process, so that a test can look at what arrived. Used by the tests of the HTTP client and of
benchmarks.serving."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

MODEL = "internlm"
SESSION_LEN = 100
PACE_S = 0.001  # between the words of an endless answer
TEMPLATE_TOKENS = 3  # that a chat template adds to a conversation
T = TypeVar("T")

# Question → status and error of the answer.
REFUSALS = {
    "full": (400, {"message": "200 prompt tokens exceed session_len=100", "code": "context_length_exceeded"}),
    "wrong": (400, {"message": "top_k=-1 is out of range", "param": "top_k"}),
    "busy": (429, {"message": "the queue is full"}),
    "loading": (503, {"message": "the model is loading"}),
    "slow": (504, {"message": "the deadline has passed"}),
    "break": (500, {"message": "an error in the server"}),
}


class FakeOpenAi:
    """Answers "I heard N: QUESTION", N counting the conversation's questions; some questions do something else.

    `port` is free again after stop(), and start() takes it anew."""

    def __init__(self, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.num_running = 0
        self.port = 0
        self.gate = threading.Event()  # the question "late" is begun when it opens
        self._api_key, self._tls = api_key, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> FakeOpenAi:
        self._runner = self._run(self._start())
        return self

    def stop(self) -> None:
        self._run(self._runner.cleanup())

    def close(self) -> None:
        self.gate.set()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/health", self._health), web.get("/v1/models", self._models),
                        web.post("/v1/chat/completions", self._chat), web.post("/v1/completions", self._chat)])
        # A client that leaves is noticed at the next write, and by cancellation, as in servers on ASGI.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return runner

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return web.json_response({"object": "list", "data": [
            {"id": MODEL, "object": "model", "created": 1, "owned_by": "tests", "max_model_len": SESSION_LEN}]})

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._api_key and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return _error(401, {"message": "Incorrect API key provided"})
        return None

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        body = await request.json()
        self.requests.append(body)
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        question = messages[-1]["content"]
        self.num_running += 1
        try:
            if question in REFUSALS:
                return _error(*REFUSALS[question])
            if question == "late":
                await asyncio.to_thread(self.gate.wait, 10)
            num_heard = sum(message["role"] == "user" for message in messages)
            words = [f"{word} " for word in ("I", "heard", f"{num_heard}:", *question.split())]
            words = words[:body.get("max_tokens") or body.get("max_completion_tokens")]
            num_prompt = TEMPLATE_TOKENS + sum(len(message["content"].split()) for message in messages)
            usage = {"prompt_tokens": num_prompt, "completion_tokens": len(words), "total_tokens":
                     num_prompt + len(words), "prompt_tokens_details": {"cached_tokens": num_prompt // 2}}
            if not body.get("stream"):
                return web.json_response({"choices": [{"index": 0, "finish_reason": "stop", "message": {
                    "role": "assistant", "content": "".join(words)}}], "usage": usage})
            return await self._stream(request, body, question, words, usage)
        finally:
            self.num_running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any], question: str, words: list[str],
                      usage: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def choice(text: str, reason: str | None = None) -> dict[str, Any]:
            said = {"delta": {"content": text}} if "messages" in body else {"text": text}
            return {"choices": [{"index": 0, "finish_reason": reason, **said}], "usage": None}

        await response.write(b": a comment, as proxies send to keep a connection open\n\n")
        if "messages" in body:
            delta = {"role": "assistant", "content": ""}
            await send({"choices": [{"index": 0, "finish_reason": None, "delta": delta}]})
        while question in ("forever", "late"):
            await send(choice("on "))
            await asyncio.sleep(PACE_S)
        for word in words:
            await send(choice(word))
            if question == "die":
                request.transport.abort()
                return response
            if question == "fail":
                await send({"error": {"message": "the engine ended: rank 0 was killed", "code": None}})
                return response
        await send(choice("", "stop"))
        if (body.get("stream_options") or {}).get("include_usage"):
            await send({"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


def _error(status: int, error: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"type": "error", "param": None, "code": None, **error}}, status=status)
