"""Tokenizer conversion: whatever a checkpoint brings becomes one tokenizer.json, without running its code.

`tokenizer.json` is copied; what else there is, sentencepiece_tokenizer.py and byte_level_tokenizer.py know how to read.
Used by the conversion pipeline and by the Hugging Face model source."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from backend.chat_templates import builtin_template
from backend.errors import TokenizerError
from backend.tokenizer_files import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TokenizerSettings,
    read_json,
    read_settings,
    special_token_id,
)
from converter.byte_level_tokenizer import build_from_ranks, build_from_vocab, looks_like_ranks
from converter.sentencepiece_model import parse_sentencepiece
from converter.sentencepiece_tokenizer import (
    NUM_CHECKED_STRINGS,
    build_from_sentencepiece,
    check_against_sentencepiece,
)

TOKENIZER_MODEL = "tokenizer.model"
COPIED_FILES = (TOKENIZER_JSON, TOKENIZER_MODEL, SPECIAL_TOKENS_MAP, ADDED_TOKENS, CHAT_TEMPLATE,
                "vocab.json", "merges.txt", "generation_config.json")


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What was made. vocab_size is the highest id + 1; an id is None where the checkpoint names no such token."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_id: int | None
    origin: str


def prepare_tokenizer(source_dir: Path, target_dir: Path, model_name: str | None) -> TokenizerInfo:
    """Write target_dir's tokenizer.json, tokenizer_config.json and the source's own small files.

    model_name is checked to have a built-in chat template where the source brings none; None skips the check.
    Raises TokenizerError for files that are missing, damaged or do not agree, TemplateError for an unknown name."""
    source_dir, target_dir = Path(source_dir), Path(target_dir)
    settings = read_settings(source_dir)
    if model_name is not None and not settings.chat_templates:
        builtin_template(model_name)
    tokenizer, own_special_tokens, origin = _build(source_dir, settings)
    special_tokens = {**own_special_tokens, **settings.special_tokens}
    info = TokenizerInfo(
        vocab_size=max(tokenizer.get_vocab().values(), default=-1) + 1,
        bos_token_id=special_token_id(tokenizer.token_to_id, special_tokens.get("bos_token"), source_dir),
        eos_token_id=special_token_id(tokenizer.token_to_id, special_tokens.get("eos_token"), source_dir),
        origin=origin,
    )
    target_dir.mkdir(parents=True, exist_ok=True)
    for name in COPIED_FILES:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, target_dir / name)
    if not (source_dir / TOKENIZER_JSON).is_file():
        tokenizer.save(str(target_dir / TOKENIZER_JSON), pretty=False)
    config = read_json(source_dir / TOKENIZER_CONFIG)
    config.update({role: text for role, text in special_tokens.items() if not config.get(role)})
    (target_dir / TOKENIZER_CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return info


def _build(source_dir: Path, settings: TokenizerSettings) -> tuple[tokenizers.Tokenizer, dict[str, str], str]:
    """(the tokenizer, special tokens that the model file itself names, how it was made)."""
    model_file = source_dir / TOKENIZER_MODEL
    if (source_dir / TOKENIZER_JSON).is_file():
        return _load(source_dir / TOKENIZER_JSON), {}, "tokenizer.json, as published"
    if model_file.is_file() and looks_like_ranks(model_file):
        tokenizer, special_tokens = build_from_ranks(model_file)
        return tokenizer, special_tokens, "built from tokenizer.model (byte-level ranks)"
    if model_file.is_file():
        model = parse_sentencepiece(model_file.read_bytes(), str(model_file))
        tokenizer, special_tokens = build_from_sentencepiece(model, settings, str(model_file))
        check_against_sentencepiece(tokenizer, model, model_file)
        return tokenizer, special_tokens, f"built from tokenizer.model, equal on {NUM_CHECKED_STRINGS:,} strings"
    if (source_dir / "vocab.json").is_file() and (source_dir / "merges.txt").is_file():
        return build_from_vocab(source_dir, settings), {}, "built from vocab.json and merges.txt"
    raise TokenizerError(f"{source_dir} has no tokenizer: give a folder with tokenizer.json, tokenizer.model, "
                         "or vocab.json and merges.txt")


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{file.name} cannot be read ({error}); fetch the checkpoint's file again") from None
