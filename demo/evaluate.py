"""Evaluate: the loss on held-out answers and, per skill, the share of correct answers by greedy decoding.

`score` takes the answers of any `Generate`, so that an engine can be measured on the same conversations; `greedy` is
that of demo/model.py.

    python -m demo.evaluate                          # writes demo/results.json
    python -m demo.evaluate --limit 5 --out /tmp/r.json        # a few conversations per skill"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from demo.chat_format import CHECKPOINT, ChatFormat
from demo.checks import is_correct
from demo.conversation import Conversation, Message, Tool, read_jsonl
from demo.corpus import HELDOUT_PATH
from demo.model import InternLM2ForCausalLM, Past, load

Prompt = tuple[Sequence[Message], Sequence[Tool]]
# Answers of the prompts, in order, without the end-of-turn token but with the special tokens of a tool call.
Generate = Callable[[list[Prompt]], list[str]]

RESULTS_PATH = Path(__file__).parent / "results.json"
MAX_NEW_TOKENS = 640
_generate: Generate
UNFINISHED = "<unfinished>"  # appended to an answer that did not end by itself, so that it counts as wrong


def score(conversations: Sequence[Conversation], answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per label (see `label`) and for all: the number of conversations and the share answered correctly."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for conversation, answer in zip(conversations, answers, strict=True):
        outcomes[label(conversation)].append(is_correct(conversation.check, answer))
    outcomes["all"] = [outcome for label_outcomes in list(outcomes.values()) for outcome in label_outcomes]
    return {name: {"count": len(some), "correct": round(sum(some) / len(some), 4)} for name, some in outcomes.items()}


def label(conversation: Conversation) -> str:
    """The row of the results: the skill, with a story's language, the kind of tool turn or the turns since a fact."""
    check = conversation.check
    if conversation.skill == "stories":
        return f"story ({check['language']})"
    if conversation.skill == "tools":
        return {"tool_call": "tool call", "contains": "answer from a tool's result"}.get(
            check["kind"], "no tool needed"
        )
    if conversation.skill == "recall":
        turns = check["turns_between"]
        if turns is None:
            return "recall, never told"
        return f"recall, {turns} turns between" if turns < 5 else "recall, 5 or more turns between"
    return conversation.skill.replace("_", " ")


def greedy(model: InternLM2ForCausalLM, chat_format: ChatFormat) -> Generate:
    """A `Generate` that decodes greedily with `model`, one prompt after the other."""
    return lambda prompts: [_greedy(model, chat_format, prompt) for prompt in prompts]


@torch.inference_mode()
def _greedy(model: InternLM2ForCausalLM, chat_format: ChatFormat, prompt: Prompt) -> str:
    device = next(model.parameters()).device
    stops = (chat_format.special_id("</s>"), chat_format.special_id("<|im_end|>"))
    ids = chat_format.encode(chat_format.render(*prompt, open_answer=True))
    limit = min(MAX_NEW_TOKENS, model.config.max_positions - len(ids))
    past = [Past() for _ in range(model.config.num_layers)]
    answer: list[int] = []
    while len(answer) < limit:
        logits = model.continue_from(past, torch.tensor([ids], device=device))
        ids = [int(logits.argmax())]
        if ids[0] in stops:
            return chat_format.decode(answer)
        answer += ids
    return chat_format.decode(answer) + UNFINISHED


@torch.inference_mode()
def answer_loss(model: InternLM2ForCausalLM, chat_format: ChatFormat, conversations: Sequence[Conversation]) -> float:
    """Mean cross-entropy per token (nats) of all the assistant's answers in the conversations, end of turn included."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for conversation in conversations:
        ids, is_answer = chat_format.encode_with_targets(conversation)
        tokens, wanted = torch.tensor(ids, device=device), torch.tensor(is_answer, device=device)[1:]
        losses = F.cross_entropy(model(tokens[None, :-1])[0].float(), tokens[1:], reduction="none")
        total += losses[wanted].sum().item()
        count += int(wanted.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the demo checkpoint on the held-out conversations.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, default=RESULTS_PATH)
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate answers")
    parser.add_argument("--limit", type=int, help="at most so many conversations per skill")
    arguments = parser.parse_args()
    conversations = _limited(read_jsonl(HELDOUT_PATH), arguments.limit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts: list[Prompt] = [(conversation.prompt, conversation.tools) for conversation in conversations]
    started = time.monotonic()
    answers, answers_bf16 = (
        _answers(arguments.checkpoint, dtype, device, prompts, arguments.jobs)
        for dtype in (torch.float32, torch.bfloat16)
    )
    model, chat_format = load(arguments.checkpoint, torch.float32).to(device), ChatFormat(arguments.checkpoint)
    results: dict[str, Any] = {
        "command": "python " + " ".join(["-m demo.evaluate", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.monotonic() - started, 1),
        "loss_per_answer_token": round(answer_loss(model, chat_format, conversations), 4),
        "same_text_in_bf16_and_fp32": round(sum(map(str.__eq__, answers, answers_bf16)) / len(answers), 4),
        "greedy_fp32": score(conversations, answers),
        "greedy_bf16": score(conversations, answers_bf16),
        "samples": _samples(conversations, answers),
        "failures": _failures(conversations, answers),
    }
    arguments.out.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for name, row in results["greedy_fp32"].items():
        print(f"{name:35} {row['count']:5d} {row['correct']:8.1%}")
    print(f"loss {results['loss_per_answer_token']}, same text in bf16 {results['same_text_in_bf16_and_fp32']:.1%}")


def _answers(checkpoint: Path, dtype: torch.dtype, device: str, prompts: list[Prompt], jobs: int) -> list[str]:
    """Greedy answers of all prompts, spread over `jobs` processes."""
    with multiprocessing.get_context("spawn").Pool(jobs, _start_job, (checkpoint, dtype, device)) as pool:
        return pool.map(_answer_one, prompts, chunksize=4)


def _start_job(checkpoint: Path, dtype: torch.dtype, device: str) -> None:
    global _generate  # a process of the pool holds one model
    torch.set_num_threads(1)
    _generate = greedy(load(checkpoint, dtype).to(device), ChatFormat(checkpoint))


def _answer_one(prompt: Prompt) -> str:
    return _generate([prompt])[0]


def _limited(conversations: list[Conversation], limit: int | None) -> list[Conversation]:
    seen: dict[str, int] = defaultdict(int)
    chosen = []
    for conversation in conversations:
        seen[conversation.skill] += 1
        if limit is None or seen[conversation.skill] <= limit:
            chosen.append(conversation)
    return chosen


def _samples(conversations: list[Conversation], answers: list[str]) -> dict[str, dict[str, str]]:
    """The first conversation of each row of the results: what was asked last and what the model said."""
    samples: dict[str, dict[str, str]] = {}
    for conversation, answer in zip(conversations, answers, strict=True):
        samples.setdefault(label(conversation), {"asked": conversation.prompt[-1].content, "answered": answer})
    return samples


def _failures(conversations: list[Conversation], answers: list[str]) -> list[dict[str, str]]:
    """Every wrong answer beside the corpus's own."""
    return [
        {
            "skill": label(conversation),
            "asked": conversation.prompt[-1].content,
            "answered": answer,
            "expected": conversation.answer,
        }
        for conversation, answer in zip(conversations, answers, strict=True)
        if not is_correct(conversation.check, answer)
    ]


if __name__ == "__main__":
    main()
