"""Tokenizer: trains the SentencePiece model on the corpus and writes the tokenizer files of the checkpoint.

Settings follow InternLM2's tokenizer.model: BPE, byte fallback, digits split, no normalisation, no dummy prefix, and
the chat's special tokens as relabelled [UNUSED_TOKEN_n] pieces at the end of the vocabulary.

    python -m demo.tokenizer             # writes demo/checkpoint/tokenizer*"""

from __future__ import annotations

import io
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from demo.chat_format import CHECKPOINT
from demo.conversation import Conversation
from demo.corpus import training_conversations
from demo.skills.echo import RARE

VOCAB_SIZE = 3072
NUM_CONVERSATIONS = 30_000
SEED = 1_000_001
# In InternLM2's order; its vocabulary ends with these, too.
SPECIAL_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
_FIRST_UNUSED = 141  # InternLM2 relabels [UNUSED_TOKEN_141] to [UNUSED_TOKEN_146]
_PRINTABLE_ASCII = "".join(map(chr, range(33, 127)))


def train_sentencepiece() -> bytes:
    """The serialised SentencePiece model; the same bytes each time with one version of SentencePiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        required_chars=_PRINTABLE_ASCII,
        max_sentencepiece_length=16,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue() + b"".join(_unused_piece(_FIRST_UNUSED + i) for i in range(len(SPECIAL_TOKENS)))


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.model, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    first = VOCAB_SIZE - len(SPECIAL_TOKENS)
    special_ids = {0: "<unk>", 1: "<s>", 2: "</s>"} | {first + i: text for i, text in enumerate(SPECIAL_TOKENS)}
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": list(reversed(SPECIAL_TOKENS)),
    }
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "added_tokens_decoder": {str(id_): _added_token(text) for id_, text in special_ids.items()},
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": template,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", names)


def _lines() -> Iterator[str]:
    """The corpus line by line. No line holds a line break, so no piece spans one: where an answer begins, after the
    role's line break, tokens break as well. Rarely used scripts stay out and are encoded as bytes."""
    for conversation in itertools.islice(training_conversations(SEED), NUM_CONVERSATIONS):
        for text in _texts(conversation):
            if not set(RARE) & set(text):
                yield from filter(None, text.split("\n"))


def _texts(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        yield message.role
        yield from message.content.replace("<|action_start|><|plugin|>", "").split("<|action_end|>")
    if conversation.tools:
        yield json.dumps(conversation.tools, ensure_ascii=False)
        yield "system name="


def _unused_piece(n: int) -> bytes:
    """One more user-defined piece for a serialised model: to append to a repeated protobuf field is to concatenate.

    Field 1 of ModelProto is a piece: text (field 1), score (field 2, float), type (field 3; 4 is user-defined)."""
    text = f"[UNUSED_TOKEN_{n}]".encode()
    piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    return b"\x0a" + bytes([len(piece)]) + piece


def _added_token(text: str) -> dict[str, Any]:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tokenizer(CHECKPOINT)
    print(f"{VOCAB_SIZE} pieces in {CHECKPOINT}")
