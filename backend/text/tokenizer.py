"""Tokenizer: text to token ids and back, from a folder's tokenizer.json.

Encoding is the `tokenizers` library's. Decoding is ours, as bytes per token: bytes can be joined without looking at
their neighbours, which is what makes streaming (detokenizer.py) exact. Knows no chat template.
Used by serving, chat and the chat template's callers; imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers

from backend.errors import RequestError, TokenizerError
from backend.tokenizer_files import BYTE_LETTERS, TOKENIZER_JSON, read_settings, special_token_id

SPACE_MARK = "▁"  # SentencePiece writes a space as U+2581
LONG_TEXT_CHARACTERS = 20_000  # tokenising takes some 20 ms, which whoever else uses the process should not wait for
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The tokenizer of one model; safe to share between threads.

    vocab_size                  highest token id + 1
    bos_token_id, eos_token_id  None where the folder names none
    special_ids                 ids of special tokens, which `decode` leaves out
    num_leading_spaces          decoding drops up to so many spaces at the start: 1 for SentencePiece's dummy prefix"""

    def __init__(self, folder: Path) -> None:
        """Raises TokenizerError where tokenizer.json is missing, damaged or of a kind that cannot be decoded."""
        self._file = Path(folder) / TOKENIZER_JSON
        self._encoder = _load(self._file)
        self._vocabulary = {token_id: token for token, token_id in self._encoder.get_vocab().items()}
        self.vocab_size = max(self._vocabulary, default=-1) + 1
        added = self._encoder.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added_ids = frozenset(added)
        self._is_byte_level, self.num_leading_spaces = _decoder_kind(self._file, self._encoder)
        self._bytes: dict[int, bytes] = {}
        special, folder = read_settings(self._file.parent).special_tokens, self._file.parent
        self.bos_token_id = special_token_id(self.token_to_id, special.get("bos_token"), folder)
        self.eos_token_id = special_token_id(self.token_to_id, special.get("eos_token"), folder)

    def encode(self, text: str, add_special_tokens: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special_tokens  add BOS or EOS as the model's tokenizer does by itself; a rendered template has its own
        parse_special       special tokens written in the text become their ids; False for text that is not trusted
                            (added tokens that are not special, like Qwen's <tool_call>, always do)
        Raises RequestError for text that is not valid Unicode (a lone surrogate)."""
        encoder = self._encoder if parse_special else self._plain_encoder
        try:
            if len(text) < LONG_TEXT_CHARACTERS:
                return encoder.encode(text, add_special_tokens=add_special_tokens).ids
            # The library lets other threads run only while it encodes a batch, for which it starts threads of its own.
            return encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except (UnicodeEncodeError, TypeError):
            raise RequestError("the text holds a lone surrogate and is not valid Unicode; send valid UTF-8") from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Raises RequestError for an id with no token."""
        parts = []
        for token_id in ids:
            if token_id not in self._vocabulary:
                raise RequestError(f"token id {token_id} is not in the vocabulary; use ids in 0..{self.vocab_size - 1}")
            if not (skip_special_tokens and token_id in self.special_ids):
                parts.append(self.token_bytes(token_id))
        text = b"".join(parts).decode("utf-8", errors="replace")
        return text[min(len(text) - len(text.lstrip(" ")), self.num_leading_spaces):]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; none for an id with no token (a padding row of the embedding)."""
        known = self._bytes.get(token_id)
        if known is None:
            if token_id not in self._vocabulary:  # not remembered: a client can make up any number of ids
                return b""
            known = self._bytes[token_id] = self._bytes_of(token_id)
        return known

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its text in the vocabulary; None where there is none."""
        return self._encoder.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it; None where there is none."""
        return self._vocabulary.get(token_id)

    @cached_property
    def _plain_encoder(self) -> tokenizers.Tokenizer:
        # A second copy, because the switch is the library's state and not an argument.
        encoder = _load(self._file)
        encoder.encode_special_tokens = True
        return encoder

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._vocabulary[token_id]
        if token_id in self._added_ids and not self._is_byte_level:
            return token.replace(SPACE_MARK, " ").encode()
        if self._is_byte_level:
            # An added token is plain text; where all its characters are byte letters, it reads as those bytes.
            letters = [BYTE_LETTERS.get(letter) for letter in token]
            return token.encode() if None in letters else bytes(letters)
        byte_piece = _BYTE_PIECE.fullmatch(token)
        return bytes([int(byte_piece[1], 16)]) if byte_piece else token.replace(SPACE_MARK, " ").encode()


def _load(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise TokenizerError(f"{file} does not exist; convert the checkpoint, which makes it from tokenizer.model")
    try:
        encoder = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{file} cannot be read ({error}); fetch the checkpoint's file again") from None
    encoder.no_truncation()  # some published files cut or pad silently
    encoder.no_padding()
    return encoder


def _decoder_kind(file: Path, encoder: tokenizers.Tokenizer) -> tuple[bool, int]:
    """(byte-level, spaces dropped at the start), from the decoder that tokenizer.json describes."""
    decoder = encoder.decoder
    steps = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
    steps = {step["type"]: step for step in steps.get("decoders", [steps])}
    if "ByteLevel" in steps:
        return True, 0
    if "Metaspace" in steps:
        return False, int(steps["Metaspace"].get("prepend_scheme", "always") != "never")
    if "ByteFallback" in steps and steps.get("Replace", {}).get("pattern") == {"String": SPACE_MARK}:
        return False, steps.get("Strip", {}).get("start", 0)
    raise TokenizerError(f"{file}: a decoder of {', '.join(steps)} is not supported; "
                         f"supported are ByteLevel, Metaspace, and Replace of {SPACE_MARK} with ByteFallback")
