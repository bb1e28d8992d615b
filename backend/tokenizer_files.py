"""Tokenizer files: the names of the small files beside tokenizer.json, and what they say.

The one reader of tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat_template.jinja.
Used by text (tokenizer, chat template) and by the converter; imports no torch and no tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    added_tokens    id → (text, is special): tokens added to, or renamed in, the vocabulary
    chat_templates  name → Jinja source; empty where the checkpoint brings none
    add_bos         whether encoding with special tokens starts with BOS; None where the files do not say
    add_eos         the same for EOS at the end
    tokenizer_class the class that Hugging Face would use, which tells apart byte-level vocabularies"""

    special_tokens: Mapping[str, str]
    added_tokens: Mapping[int, tuple[str, bool]]
    chat_templates: Mapping[str, str]
    add_bos: bool | None
    add_eos: bool | None
    tokenizer_class: str | None


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings in a folder; a file that is missing says nothing. Raises TokenizerError for a damaged one."""
    config = read_json(folder / TOKENIZER_CONFIG)
    special_tokens = _special_tokens(config)
    for role, text in _special_tokens(read_json(folder / SPECIAL_TOKENS_MAP)).items():
        special_tokens.setdefault(role, text)
    return TokenizerSettings(
        special_tokens=special_tokens,
        added_tokens=_added_tokens(folder, config, set(special_tokens.values())),
        chat_templates=_chat_templates(folder, config),
        add_bos=config.get("add_bos_token"),
        add_eos=config.get("add_eos_token"),
        tokenizer_class=config.get("tokenizer_class"),
    )


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


def _added_tokens(folder: Path, config: Mapping[str, Any], special: set[str]) -> dict[int, tuple[str, bool]]:
    added = {token_id: (text, text in special) for text, token_id in read_json(folder / ADDED_TOKENS).items()}
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        text = _text(token)
        if not token_id.isdecimal() or text is None:
            raise TokenizerError(f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder[{token_id!r}] = {token!r} "
                                 "does not name an id and a text; fetch the checkpoint's file again")
        added[int(token_id)] = (text, bool(isinstance(token, dict) and token.get("special")) or text in special)
    return added


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """chat_template.jinja wins over tokenizer_config.json, as in transformers."""
    file = folder / CHAT_TEMPLATE
    written = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(written, str):
        return {"default": written}
    if isinstance(written, list):
        written = {entry.get("name"): entry.get("template") for entry in written if isinstance(entry, dict)}
    return {name: source for name, source in (written or {}).items() if isinstance(source, str)}


def _byte_letters() -> dict[str, int]:
    """The letters for bytes in byte-level vocabularies (GPT-2): printable Latin-1 is itself, the rest from U+0100."""
    printable: list[int] = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()
