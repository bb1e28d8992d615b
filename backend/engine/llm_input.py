"""LLM input: what a script may hand to LLM, told apart and refused in words where it is something else.

Used by llm.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import RequestError
from backend.requests import SamplingParams
from backend.text.front_end import Message

Prompt = str | Sequence[int]
MAX_SESSION_ID = 2**64 - 1  # as on the wire


def as_prompts(prompts: Any) -> tuple[list[Prompt], bool]:
    """(the prompts, whether it was a single one). Raises RequestError for what is neither text nor token ids."""
    is_one = isinstance(prompts, str) or (_is_list(prompts) and len(prompts) > 0 and isinstance(prompts[0], int))
    if not is_one and not _is_list(prompts):
        raise RequestError(f"prompts is {_kind(prompts)}; give a text, token ids, or a list of them")
    several = [prompts] if is_one else list(prompts)
    for index, prompt in enumerate(several):
        if not isinstance(prompt, str) and not (_is_list(prompt) and all(isinstance(item, int) for item in prompt)):
            raise RequestError(f"prompts[{index}] is {_kind(prompt)}; give a text, or a list of token ids")
    return several, is_one


def as_conversations(messages: Any) -> tuple[list[Sequence[Message]], bool]:
    """(the conversations, whether it was a single one). Messages are checked where they are rendered.

    Raises RequestError for what is no list."""
    if not _is_list(messages):
        raise RequestError(f'messages is {_kind(messages)}; give a list like [{{"role": "user", "content": "Hello"}}]')
    is_one = is_conversation(messages) or not messages
    return [messages] if is_one else list(messages), is_one


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a conversation's messages rather than text or token ids."""
    return _is_list(prompt) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def one_sampling(sampling: Any) -> SamplingParams:
    """The default for None. Raises RequestError for anything that is no SamplingParams."""
    if sampling is None:
        return SamplingParams()
    if not isinstance(sampling, SamplingParams):
        raise RequestError(f"sampling is {_kind(sampling)}; give SamplingParams, like SamplingParams(temperature=0)")
    return sampling


def one_sampling_each(sampling: Any, count: int) -> list[SamplingParams]:
    """For each of `count` prompts its own, from one for all or a list with one for each."""
    if not _is_list(sampling):
        return [one_sampling(sampling)] * count
    if len(sampling) != count:
        raise RequestError(f"{len(sampling)} SamplingParams for {count} prompts; give one, or one for each")
    return [one_sampling(each) for each in sampling]


def check_session_id(session_id: Any) -> None:
    """Raises RequestError unless it is None or an id that every front end can send."""
    is_integer = isinstance(session_id, int) and not isinstance(session_id, bool)
    if session_id is not None and not (is_integer and 0 <= session_id <= MAX_SESSION_ID):
        raise RequestError(f"session_id={session_id!r} does not work; use an integer in 0..2^64-1")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
