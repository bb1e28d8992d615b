"""Chat format: conversations to token ids and back, from the published tokenizer files alone.

The chat template in tokenizer_config.json is the only source of the prompt's text; this module renders it and runs
SentencePiece between the special tokens. Used by train.py and evaluate.py."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from jinja2.sandbox import ImmutableSandboxedEnvironment

from demo.conversation import Conversation, Message, Tool, as_dicts

CHECKPOINT = Path(__file__).parent / "checkpoint"


class ChatFormat:
    """The tokenizer of a checkpoint folder: `render`, `encode`, `decode`."""

    def __init__(self, folder: Path = CHECKPOINT) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self._special_ids = {entry["content"]: int(id_) for id_, entry in config["added_tokens_decoder"].items()}
        self._special_texts = {id_: text for text, id_ in self._special_ids.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, self._special_ids)) + ")")
        self._bos_token = config["bos_token"]
        # trim_blocks, lstrip_blocks and tojson are as transformers sets them for chat templates.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(config["chat_template"])

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    def special_id(self, text: str) -> int:
        """The id of a special token."""
        return self._special_ids[text]

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, open_answer: bool = False) -> str:
        """The text of a conversation; with `open_answer` it ends where the assistant's next answer begins."""
        context: dict[str, Any] = {"messages": as_dicts(messages), "tools": list(tools) or None}
        return self._template.render(**context, bos_token=self._bos_token, add_generation_prompt=open_answer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text, special tokens recognised."""
        ids: list[int] = []
        for part in self._split.split(text):
            ids.extend((self._special_ids[part],) if part in self._special_ids else self._pieces.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        parts = []
        for is_special, group in groupby(ids, key=self._special_texts.__contains__):
            run = list(group)
            parts += [self._special_texts[id_] for id_ in run] if is_special else [self._pieces.decode(run)]
        return "".join(parts)

    def encode_with_targets(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each whether it belongs to an assistant's answer or ends one."""
        ids: list[int] = []
        is_answer: list[bool] = []
        opening, ending = "<|im_start|>assistant\n", "<|im_end|>"
        for part in re.split(
            f"((?<={re.escape(opening)}).*?{re.escape(ending)})",
            self.render(conversation.messages, conversation.tools),
            flags=re.DOTALL,
        ):
            part_ids = self.encode(part)
            is_answer += [bool(ids) and self._ends_with(ids, opening)] * len(part_ids)
            ids += part_ids
        return ids, is_answer

    def _ends_with(self, ids: list[int], text: str) -> bool:
        suffix = self.encode(text)
        return ids[-len(suffix) :] == suffix
