"""Tokenizer files: the names of the small files beside tokenizer.json, and what they say.

The one reader of tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat_template.jinja.
Used by text (tokenizer, chat template) and by the converter; imports no torch and no tokenizer library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import TokenizerError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What the small files of a tokenizer folder say.

    special_tokens  role ("bos_token" …) → the token's text
    additional_special_tokens  texts of special tokens without a role
    added_tokens    id → (text, is special): tokens added to, or renamed in, the vocabulary
    chat_templates  name → Jinja source; empty where the checkpoint brings none
    add_bos         whether encoding with special tokens starts with BOS; None where the files do not say
    add_eos         the same for EOS at the end
    tokenizer_class the class that Hugging Face would use, which tells apart byte-level vocabularies"""

    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...]
    added_tokens: Mapping[int, tuple[str, bool]]
    chat_templates: Mapping[str, str]
    add_bos: bool | None
    add_eos: bool | None
    tokenizer_class: str | None


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings in a folder; a file that is missing says nothing. Raises TokenizerError for a damaged one."""
    config, special_map = read_json(folder / TOKENIZER_CONFIG), read_json(folder / SPECIAL_TOKENS_MAP)
    special_tokens = {**_special_tokens(special_map), **_special_tokens(config)}
    additional = (*_additional(special_map), *_additional(config))
    return TokenizerSettings(
        special_tokens=special_tokens,
        additional_special_tokens=additional,
        added_tokens=_added_tokens(folder, config, {*special_tokens.values(), *additional}),
        chat_templates=_chat_templates(folder, config),
        add_bos=_flag(config.get("add_bos_token")),
        add_eos=_flag(config.get("add_eos_token")),
        tokenizer_class=_text(config.get("tokenizer_class")),
    )


def special_token_id(token_to_id: Callable[[str], int | None], token: str | None, folder: Path) -> int | None:
    """The id of a special token that a folder's settings name; None for None. Raises TokenizerError without one."""
    if token is None:
        return None
    token_id = token_to_id(token)
    if token_id is None:
        raise TokenizerError(f"{folder}: {TOKENIZER_CONFIG} names {token!r}, which the vocabulary does not have; "
                             "take all files from the same checkpoint")
    return token_id


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises TokenizerError where it is no JSON object."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file} is not valid JSON ({error}); fetch the checkpoint's file again") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a {type(value).__name__}, not an object; fetch the checkpoint's file again")
    return value


def _text(token: Any) -> str | None:
    """A token is written as its text, or as an object with it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    texts = {role: _text(config.get(role)) for role in TOKEN_ROLES}
    return {role: text for role, text in texts.items() if text}


def _additional(config: Mapping[str, Any]) -> list[str]:
    tokens = config.get("additional_special_tokens")
    return [text for text in map(_text, tokens if isinstance(tokens, list) else []) if text]


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _added_tokens(folder: Path, config: Mapping[str, Any], special: set[str]) -> dict[int, tuple[str, bool]]:
    """added_tokens.json is the older form, text → id; added_tokens_decoder is the newer, id → token."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder is no object; fetch the file again")
    entries = [(ADDED_TOKENS, token_id, text, False) for text, token_id in read_json(folder / ADDED_TOKENS).items()]
    entries += [(TOKENIZER_CONFIG, token_id, _text(token), isinstance(token, dict) and token.get("special") is True)
                for token_id, token in decoder.items()]
    added = {}
    for name, token_id, text, is_special in entries:
        if not re.fullmatch(r"[0-9]{1,9}", str(token_id)) or not text:
            raise TokenizerError(f"{folder / name}: an added token has id {token_id!r} and text {text!r}; "
                                 "fetch the checkpoint's file again")
        added[int(token_id)] = (text, is_special or text in special)
    return added


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja wins over tokenizer_config.json, as in transformers."""
    file = folder / CHAT_TEMPLATE
    try:
        written = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    except UnicodeDecodeError:
        raise TokenizerError(f"{file} is not UTF-8 text; fetch the checkpoint's file again") from None
    if isinstance(written, str):
        return {"default": written}
    if isinstance(written, list):
        written = {str(entry.get("name")): entry.get("template") for entry in written if isinstance(entry, dict)}
    named = written if isinstance(written, dict) else {}
    return {name: source for name, source in named.items() if isinstance(name, str) and isinstance(source, str)}


def _byte_letters() -> dict[str, int]:
    """The letters for bytes in byte-level vocabularies (GPT-2): printable Latin-1 is itself, the rest from U+0100."""
    printable: list[int] = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()
