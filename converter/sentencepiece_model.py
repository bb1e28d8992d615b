"""SentencePiece model file: its pieces and the settings that decide how text is cut.

Reads the protobuf wire format itself, because SentencePiece's own protobuf module needs protobuf >= 7 while
tritonclient needs < 7, and `SentencePieceProcessor` does not tell the settings. Field numbers after
sentencepiece_model.proto (Google, Apache-2.0). Used by converter/tokenizer.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from backend.errors import TokenizerError

BPE = 2  # trainer_spec.model_type; 1 is unigram, 3 words, 4 characters


class PieceType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` holds. `has_charsmap`: a compiled table normalises the text, as with nmt_nfkc.

    unk_id, bos_id, eos_id are -1 where the model has no such piece, as in SentencePiece."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    has_charsmap: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    unk_id: int
    bos_id: int
    eos_id: int


def parse_sentencepiece(data: bytes, name: str) -> SentencePieceModel:
    """The model in a file's bytes; `name` is for messages. Raises TokenizerError where it is no SentencePiece model."""
    try:
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(data):
            if number == 1:
                fields = dict(_fields(value))
                score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
                pieces.append(Piece(fields[1].decode(), score, PieceType(fields.get(3, PieceType.NORMAL))))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise TokenizerError(f"{name} is no SentencePiece model, or is damaged ({error}); fetch it again") from None
    if not pieces:
        raise TokenizerError(f"{name} holds no pieces; fetch it again")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=trainer.get(3, 1),
        treat_whitespace_as_suffix=bool(trainer.get(24, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        has_charsmap=bool(normalizer.get(2)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: integers for varints, bytes for the rest."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
        else:
            if wire_type == 2:
                size, position = _varint(data, position)
            elif wire_type in (1, 5):
                size = 8 if wire_type == 1 else 4
            else:
                raise ValueError(f"wire type {wire_type} at byte {position}")
            value, position = data[position:position + size], position + size
            if position > len(data):
                raise ValueError(f"{size} bytes wanted at the end of {len(data)}")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _signed(value: int) -> int:
    """Protobuf writes a negative int32 as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value
