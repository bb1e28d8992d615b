"""Tiny tokenizers in every published form, trained on a few lines, for the tests of text and converter."""

from __future__ import annotations

import base64
import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from backend.tokenizer_files import BYTE_LETTERS

LINES = [
    "the fox and the rabbit went home", "Once upon a time there was a fox, isn't it?", "hello  world   this is 123 45",
    "从前有一只狐狸和一只兔子。你好，世界", "def f(x):\n    return x + 1\n", "a\tb    c", "naïve café 😀",
] * 40
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
NORMAL = 1


@cache
def sentencepiece_model(add_dummy_prefix: bool = True, remove_extra_whitespaces: bool = False,
                        user_defined: tuple[str, ...] = (), **options: Any) -> bytes:
    """A SentencePiece BPE with byte fallback, a \\x00 piece and one unused piece for each of CHAT_TOKENS at the end."""
    file = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity",
        "add_dummy_prefix": add_dummy_prefix, "remove_extra_whitespaces": remove_extra_whitespaces,
        "user_defined_symbols": list(user_defined), "allow_whitespace_only_pieces": True, "character_coverage": 0.999,
        "num_threads": 1, "minloglevel": 2, **options,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=file, **settings)
    unused = [f"[UNUSED_TOKEN_{index}]" for index in range(len(CHAT_TOKENS))]
    return file.getvalue() + b"".join(_piece(text, -1e4 - index) for index, text in enumerate(["\x00", *unused]))


def _piece(text: str, score: float) -> bytes:
    """One more piece: protobuf messages that are joined have the repeated fields of both."""
    data = text.encode()
    message = b"\x0a" + bytes([len(data)]) + data + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([NORMAL])
    return b"\x0a" + bytes([len(message)]) + message


def write_sentencepiece_folder(folder: Path, model: bytes, relabel: bool = True, **config: Any) -> Path:
    """A folder as InternLM2 publishes it: tokenizer.model, and a configuration that renames the last pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    first = size - len(CHAT_TOKENS)
    added = {str(first + index): {"content": text, "special": True} for index, text in enumerate(CHAT_TOKENS)}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
    if relabel:
        config["added_tokens_decoder"] = added
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


@cache
def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE with CHAT_TOKENS and two special tokens that no byte letters spell."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*CHAT_TOKENS, "<｜end of text｜>", "<a b>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def write_byte_level_folder(folder: Path, **config: Any) -> Path:
    """A folder with tokenizer.json of `byte_level_tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def write_vocab_folder(folder: Path, tokenizer_class: str) -> Path:
    """The same vocabulary as vocab.json and merges.txt, as GPT-2 and Qwen were published; its chat tokens come last."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _byte_level_parts()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]), "utf-8")
    added = {str(len(vocabulary) + index): {"content": text, "special": True, "lstrip": False, "rstrip": False,
                                            "single_word": False, "normalized": False}
             for index, text in enumerate(CHAT_TOKENS)}
    config = {"tokenizer_class": tokenizer_class, "eos_token": "<|im_end|>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def byte_ranks() -> dict[bytes, int]:
    """The same vocabulary as Llama 3's rank file has it."""
    vocabulary, _ = _byte_level_parts()
    return {bytes(BYTE_LETTERS[letter] for letter in token): rank for token, rank in vocabulary.items()}


def write_rank_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for token, rank in byte_ranks().items())
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def _byte_level_parts() -> tuple[dict[str, int], list[list[str]]]:
    """(token → rank without special tokens, merges in their order)."""
    model = json.loads(byte_level_tokenizer().to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])
              if all(letter in BYTE_LETTERS for letter in token) and token not in CHAT_TOKENS]
    return {token: rank for rank, token in enumerate(tokens)}, model["merges"]
