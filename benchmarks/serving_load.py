"""Serving load: which requests are sent, and when. An open loop: arrivals do not wait for answers.

Arrivals are a Poisson process; lengths are drawn like ShareGPT's conversations or read from a file. Everything comes
from a seed, so that two servers meet the same load. Used by serving.py."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

# Mean tokens of ShareGPT's prompts and answers after Kwon et al., 2023 (vLLM), figure 11; their spread is of this
# order, the tail is cut as benchmarks of that data cut it.
SHAREGPT_PROMPT_MEAN, SHAREGPT_PROMPT_SIGMA = 161, 1.2
SHAREGPT_ANSWER_MEAN, SHAREGPT_ANSWER_SIGMA = 338, 0.9
MIN_TOKENS, MAX_PROMPT_TOKENS, MAX_TOKENS = 4, 1024, 2048

FILLER = ("time year people way day man thing woman life child world school state family student group country problem "
          "hand part place case week company system program question work number night point home water room mother "
          "area money story fact month lot right study book eye job word business issue side kind head house service "
          "friend father power hour game line end member law car city name team minute idea body back parent face "
          "level office door health person art war history party result change morning reason research girl guy moment "
          "air teacher force education")
WORDS = FILLER.split()


@dataclass(frozen=True, slots=True)
class Ask:
    """One request's size, in tokens. `text` is the prompt where a file brings it; else words make it up."""

    num_prompt_tokens: int
    num_new_tokens: int
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TokensPerWord:
    """How a server counts: a prompt of n of our words has `offset + slope * n` tokens, chat template included."""

    slope: float
    offset: float

    @classmethod
    def of(cls, few: tuple[int, int], many: tuple[int, int]) -> TokensPerWord:
        """From two prompts' (words, tokens)."""
        slope = (many[1] - few[1]) / (many[0] - few[0])
        return cls(slope, few[1] - slope * few[0])

    def num_words(self, num_tokens: int) -> int:
        """Words of a prompt of so many tokens; at least one."""
        return max(1, round((num_tokens - self.offset) / self.slope))

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, estimated from its words; at least one."""
        return max(1, round(len(text.split()) * self.slope))


def sharegpt_like(rng: random.Random) -> Iterator[Ask]:
    """Endless requests whose lengths are log-normal with ShareGPT's means."""
    while True:
        num_prompt = _log_normal(rng, SHAREGPT_PROMPT_MEAN, SHAREGPT_PROMPT_SIGMA)
        num_new = _log_normal(rng, SHAREGPT_ANSWER_MEAN, SHAREGPT_ANSWER_SIGMA)
        if MIN_TOKENS <= num_prompt <= MAX_PROMPT_TOKENS and MIN_TOKENS <= num_new <= MAX_TOKENS - num_prompt:
            yield Ask(num_prompt, num_new)


def fixed(num_prompt_tokens: int, num_new_tokens: int) -> Iterator[Ask]:
    """Endless requests of one size."""
    while True:
        yield Ask(num_prompt_tokens, num_new_tokens)


def from_file(file: Path, rng: random.Random, tokens_per_word: TokensPerWord) -> Iterator[Ask]:
    """Endless requests in a random order from a file: ShareGPT's JSON (the first question and answer of each
    conversation; the answer's tokens are estimated from its words), or JSON lines with num_new_tokens and either
    prompt or num_prompt_tokens. Raises ClickException for any other file."""
    try:
        text = file.read_text(encoding="utf-8")
        entries = json.loads(text) if text.lstrip().startswith("[") else [
            json.loads(line) for line in text.splitlines() if line.strip()]
        asks = [ask for entry in entries if (ask := _ask_of(entry, tokens_per_word)) is not None]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{file} is neither ShareGPT's JSON nor lines of "
                                   f'{{"prompt" or "num_prompt_tokens", "num_new_tokens"}}: {error!r}') from None
    if not asks:
        raise click.ClickException(f"{file} holds no question with an answer")
    while True:
        yield from rng.sample(asks, len(asks))


def prompt_text(ask: Ask, rng: random.Random, tokens_per_word: TokensPerWord) -> str:
    """The prompt of a request. Random words, so that no prefix cache knows it."""
    if ask.text is not None:
        return ask.text
    return " ".join(rng.choices(WORDS, k=tokens_per_word.num_words(ask.num_prompt_tokens)))


def arrival_times(rng: random.Random, rate: float, count: int) -> list[float]:
    """Seconds from the start at which `count` requests are due; a rate of inf sends them all at once."""
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += 0.0 if math.isinf(rate) else rng.expovariate(rate)
    return times


def _log_normal(rng: random.Random, mean: float, sigma: float) -> int:
    return round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))


def _ask_of(entry: dict[str, Any], tokens_per_word: TokensPerWord) -> Ask | None:
    """None for a conversation that does not begin with a question and its answer."""
    if "conversations" not in entry:
        prompt = entry.get("prompt")
        num_prompt = tokens_per_word.num_tokens(prompt) if prompt is not None else int(entry["num_prompt_tokens"])
        return Ask(num_prompt, int(entry["num_new_tokens"]), prompt)
    turns = entry["conversations"][:2]
    if [turn["from"] for turn in turns] != ["human", "gpt"] or not all(turn["value"].strip() for turn in turns):
        return None
    question, answer = (turn["value"] for turn in turns)
    num_prompt, num_new = tokens_per_word.num_tokens(question), tokens_per_word.num_tokens(answer)
    return Ask(num_prompt, num_new, question) if num_prompt <= MAX_PROMPT_TOKENS and num_new <= MAX_TOKENS else None
