"""OpenAI stream: one streamed request to any server of OpenAI's API, and when its parts came.

aiohttp, whose parser is C: a part costs about 20 us of CPU here, a third of what it costs with httpx, so one process
can load a fast server.
Used by serving.py."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
ERROR_CHARACTERS = 200  # of a failure that are kept


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times in seconds from the run's start; first_s and last_s of parts with text.

    gaps_s          between consecutive parts with text
    num_new_tokens  as the server counted them; where it does not say, the number of parts
    error           why it failed; None: the answer came whole"""

    due_s: float
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    ended_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    error: str | None = "the stream ended before its answer"

    @property
    def num_parts(self) -> int:
        return 0 if self.first_s is None else len(self.gaps_s) + 1


@dataclass(frozen=True, slots=True)
class Api:
    """A server and how it is asked.

    endpoint     chat or completions
    limit_field  max_tokens, or max_completion_tokens for servers that know that one alone
    extra        fields of every request; None takes a field away"""

    url: str
    model: str
    endpoint: str
    api_key: str | None
    limit_field: str = "max_tokens"
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, prompt: str, num_new_tokens: int, stream: bool = True) -> bytes:
        """A request for `num_new_tokens` tokens."""
        asked = ({"messages": [{"role": "user", "content": prompt}]} if self.endpoint == "chat" else
                 {"prompt": prompt})
        body = {"model": self.model, **asked, self.limit_field: num_new_tokens, "temperature": 0}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps({name: value for name, value in (body | self.extra).items() if value is not None}).encode()

    def http(self, timeout_s: float) -> aiohttp.ClientSession:
        """As many connections as there are answers; each answer has timeout_s."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0),
                                     timeout=aiohttp.ClientTimeout(total=timeout_s))


async def models(api_url: str, api_key: str | None) -> list[dict[str, Any]]:
    """What the server says it serves. Raises OSError or aiohttp.ClientError."""
    async with Api(api_url, "", "chat", api_key).http(30) as http, http.get(f"{api_url}/v1/models") as response:
        response.raise_for_status()
        return (await response.json())["data"]


async def count_tokens(api: Api, http: aiohttp.ClientSession, prompt: str) -> int:
    """Tokens that the server counts in a prompt. Raises RuntimeError with the server's words."""
    async with http.post(api.url + PATHS[api.endpoint], data=api.body(prompt, 4, stream=False)) as response:
        if response.status != 200:
            raise RuntimeError(await _refusal(response))
        return (await response.json())["usage"]["prompt_tokens"]


async def ask(api: Api, http: aiohttp.ClientSession, prompt: str, num_new_tokens: int, outcome: Outcome,
              start_s: float) -> Outcome:
    """Sends one request and fills in its outcome; never raises for what the server does."""
    body = api.body(prompt, num_new_tokens)
    outcome.sent_s = time.perf_counter() - start_s
    try:
        async with http.post(api.url + PATHS[api.endpoint], data=body) as response:
            if response.status != 200:
                outcome.error = await _refusal(response)
            else:
                await _read(response, outcome, start_s)
    except asyncio.TimeoutError:
        outcome.error = "no whole answer in time"
    except (aiohttp.ClientError, OSError, ValueError, LookupError) as error:  # the last two: no answer of this API
        outcome.error = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
    outcome.ended_s = time.perf_counter() - start_s
    return outcome


async def _read(response: aiohttp.ClientResponse, outcome: Outcome, start_s: float) -> None:
    rest, num_counted = b"", None
    async for data in response.content.iter_any():
        now_s = time.perf_counter() - start_s
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line[5:].strip() == b"[DONE]":
                outcome.num_new_tokens = outcome.num_parts if num_counted is None else num_counted
                continue
            event = json.loads(line[5:])
            if "error" in event:
                outcome.error = str(event["error"])[:ERROR_CHARACTERS]
                return
            for choice in event.get("choices") or ():
                if _has_text(choice):
                    _note_part(outcome, now_s)
                if choice.get("finish_reason") is not None:
                    outcome.error = None
                    if outcome.first_s is None:  # nothing of it can be shown as text
                        _note_part(outcome, now_s)
            if event.get("usage"):
                usage = event["usage"]
                num_counted = usage["completion_tokens"]
                outcome.num_prompt_tokens = usage["prompt_tokens"]
                outcome.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))


def _note_part(outcome: Outcome, now_s: float) -> None:
    if outcome.first_s is None:
        outcome.first_s = now_s
    else:
        outcome.gaps_s.append(now_s - outcome.last_s)
    outcome.last_s = now_s


async def _refusal(response: aiohttp.ClientResponse) -> str:
    return f"{response.status}: {(await response.text())[:ERROR_CHARACTERS]}"
