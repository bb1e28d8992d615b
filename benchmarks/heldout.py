"""Held-out: the demo model's held-out conversations, as a text to predict and as questions to answer.

Used by accuracy.py."""

from __future__ import annotations

import dataclasses
import math

from backend import LLM, SamplingParams
from backend.config import EngineConfig, ModelConfig
from backend.model_source import ModelSource
from backend.requests import FinishReason
from converter.accuracy import EvaluationText
from demo.chat_format import CHECKPOINT, ChatFormat
from demo.conversation import Conversation, read_jsonl
from demo.corpus import HELDOUT_PATH
from demo.evaluate import MAX_NEW_TOKENS, UNFINISHED, score
from demo.model import DemoConfig

TEXT_NAME = "the demo's held-out conversations"
BATCH_SIZE = 64


def is_demo(model: ModelConfig) -> bool:
    """Whether it is the demo model, however it is stored: no published model has these sizes."""
    demo = DemoConfig()
    return ((model.vocab_size, model.hidden_size, model.num_layers, model.intermediate_size)
            == (demo.vocab_size, demo.hidden_size, demo.num_layers, demo.intermediate_size))


def heldout_text(limit: int | None = None) -> EvaluationText:
    """Each conversation, system message and tools included, is a window of its own. limit: no more than so many."""
    chat_format = ChatFormat(CHECKPOINT)
    conversations = _conversations(limit)
    return EvaluationText(TEXT_NAME, tuple(
        tuple(chat_format.encode(chat_format.render(conversation.messages, conversation.tools)))
        for conversation in conversations))


def skills(source: ModelSource, engine: EngineConfig, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Per skill, all of recall's rows as one, and for all: how many questions, and the share answered correctly by
    greedy decoding."""
    chat_format = ChatFormat(CHECKPOINT)
    conversations = _conversations(limit)
    prompts = [chat_format.encode(chat_format.render(conversation.prompt, conversation.tools, open_answer=True))
               for conversation in conversations]
    sampling = [SamplingParams(temperature=0, max_new_tokens=min(MAX_NEW_TOKENS, engine.session_len - len(prompt)))
                for prompt in prompts]
    with LLM(source, **dataclasses.asdict(engine) | {"max_batch_size": BATCH_SIZE}) as llm:
        completions = llm.generate(prompts, sampling)
    ends = set(source.model.eos_token_ids)
    answers = []
    for completion in completions:
        has_ended = completion.finish_reason is not FinishReason.LENGTH
        ids = [token_id for token_id in completion.token_ids if token_id not in ends]
        answers.append(chat_format.decode(ids) + UNFINISHED * (not has_ended))
    return _with_recall_as_one(score(conversations, answers))


def _conversations(limit: int | None) -> list[Conversation]:
    """All, or up to `limit` of them, of every skill."""
    conversations = read_jsonl(HELDOUT_PATH)
    return conversations if limit is None else conversations[:: math.ceil(len(conversations) / limit)]


def _with_recall_as_one(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    recall = {name: row for name, row in rows.items() if name.startswith("recall")}
    kept = {name: row for name, row in rows.items() if name not in recall}
    count = sum(row["count"] for row in recall.values())
    if not count:
        return kept
    correct = sum(row["count"] * row["correct"] for row in recall.values()) / count
    return {**kept, "recall": {"count": count, "correct": round(correct, 4)}}
