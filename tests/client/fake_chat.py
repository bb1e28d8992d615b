"""A `chat` model whose tokens are words: what the client meets, without an engine. Both servers can serve it.

Its sessions refuse in the engine's own words; test_with_engine.py shows that those are the words."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np

from backend.errors import EngineDeadError, RequestError, SessionError, TemplateError

PACE_S = 0.001  # between the words of an endless answer
SESSION_LEN = 100
USER = "<user>"


class FakeChat:
    """Answers "I heard N: QUESTION", N counting the session's questions; some questions do something else."""

    name = "chat"

    def __init__(self) -> None:
        self.sessions: dict[int, list[str]] = {}
        self.requests: list[dict[str, object]] = []
        self.running: dict[int, asyncio.Event] = {}
        self.gate = threading.Event()  # the question "late" is begun when it opens
        self.rewrites_turns = False

    async def infer(self, tensors, context):
        inputs = {name: [_plain(value) for value in array.reshape(-1)] for name, array in tensors.items()}
        inputs = {name: value if name == "STOP_WORDS" else value[0] for name, value in inputs.items()}
        self.requests.append(inputs)
        session_id = inputs["CORRID"]
        if inputs.get("STOP"):
            self._stop(session_id, bool(inputs.get("END")))
            yield _response("", "abort")
            return
        prompt = inputs.get("PROMPT")
        new = [("user", prompt)] if prompt is not None else [
            (message["role"], message["content"]) for message in json.loads(inputs["MESSAGES"])]
        question = new[-1][1]
        if question == "late":
            await asyncio.to_thread(self.gate.wait, 10)
        words = self._history(session_id, inputs)
        for role, content in new:
            words = [*words, f"<{role}>", *content.split()]
        if len(words) > SESSION_LEN:
            raise RequestError(f"{len(words)} prompt tokens + 1 new ones exceed session_len={SESSION_LEN}; shorten it")
        if question == "die":
            raise EngineDeadError("the engine ended: rank 0 was killed")
        if question == "break":
            raise ValueError("an error in the server")
        self.running[session_id] = asyncio.Event()
        self.sessions[session_id] = words
        try:
            async for response in self._answer(session_id, question, words):
                yield response
        finally:
            del self.running[session_id]

    async def _answer(self, session_id, question, words):
        num_prompt, stopped, count = len(words), self.running[session_id], 0
        while question in ("forever", "late"):
            if stopped.is_set():
                yield _response("", "abort", num_prompt, 0, count, len(words))
                return
            words.append("on")
            count += 1
            yield _response("on ", "", num_prompt, 0, count, len(words))
            await asyncio.sleep(PACE_S)
        answer = ["I", "heard", f"{words.count(USER)}:", *question.split()]
        for index, word in enumerate(answer):
            words.append(word)
            reason = "stop" if index + 1 == len(answer) else ""
            yield _response(word + " ", reason, num_prompt, 0, index + 1, len(words))

    def _history(self, session_id, inputs):
        if inputs.get("START") != 0:
            return []
        if session_id not in self.sessions:
            raise SessionError(f"session {session_id} is not known: it was never started, or has ended; start it")
        if self.rewrites_turns:
            raise TemplateError("the template rewrites earlier turns, so a turn cannot be appended to a session; "
                                "send the whole conversation with each request")
        held, step = self.sessions[session_id], inputs.get("STEP")
        if step is not None and step > len(held):
            raise SessionError(f"session {session_id} holds {len(held)} tokens, so step={step} cannot be reached")
        return held[:step]

    def _stop(self, session_id, forget):
        if session_id not in self.sessions:
            raise SessionError(f"session {session_id} is not known: it was never started, or has ended; start it")
        if session_id not in self.running and not forget:
            raise SessionError(f"session {session_id} is idle, so there is nothing to stop")
        if session_id in self.running:
            self.running[session_id].set()
        if forget:
            del self.sessions[session_id]


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value.item()


def _response(text, reason, *numbers):
    counts = dict(zip(("PROMPT_TOKENS", "CACHED_TOKENS", "COMPLETION_TOKENS", "SESSION_TOKENS"),
                      (*numbers, 0, 0, 0, 0), strict=False))
    return {"TEXT": np.array([[text.encode()]], object), "FINISH_REASON": np.array([[reason.encode()]], object),
            **{name: np.array([[count]], np.uint32) for name, count in counts.items()}}


def models():
    """What a real Triton Inference Server is given."""
    return {"chat": FakeChat()}
