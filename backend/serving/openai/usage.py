"""Usage: how many tokens an answer took. Used by every endpoint that reports them."""

from __future__ import annotations

from typing import Any

from backend.requests import GenerateOutput


class UsageCount:
    """Counts each prompt once, however many completions it has, and every completion.

    num_choices  completions of each prompt: requests i with the same i // num_choices have the same prompt"""

    def __init__(self, num_choices: int = 1) -> None:
        self._num_choices = num_choices
        self._last: dict[int, GenerateOutput] = {}

    def add(self, index: int, output: GenerateOutput) -> None:
        """The latest output of request `index`: its counts replace those before."""
        self._last[index] = output

    def document(self) -> dict[str, Any]:
        """As OpenAI's `usage`."""
        prompts = [output for index, output in self._last.items() if index % self._num_choices == 0]
        num_prompt = sum(output.num_prompt_tokens for output in prompts)
        num_completion = sum(output.num_completion_tokens for output in self._last.values())
        return {"prompt_tokens": num_prompt, "completion_tokens": num_completion,
                "total_tokens": num_prompt + num_completion,
                "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in prompts)}}
