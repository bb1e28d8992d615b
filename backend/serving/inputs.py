"""Inputs: reading a request's tensors as Python values, with one line of what is wrong where they are not.

Names, types and shapes were checked against config.pbtxt; this checks values. Used by the served models."""

from __future__ import annotations

from typing import Any

import numpy as np

from backend.errors import RequestError
from backend.serving.served_model import Tensors
from backend.text.strict_json import parse_json


class Inputs:
    """The tensors of one request."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def has(self, name: str) -> bool:
        return name in self._tensors

    def scalar(self, name: str, default: Any = None) -> Any:
        """The one element of an input, as a Python number or bool; the default where the input is absent."""
        if name not in self._tensors:
            return default
        values = self._tensors[name].reshape(-1)
        if len(values) != 1:
            raise RequestError(f"{name} holds {len(values)} values; send exactly one")
        return values[0].item()

    def size(self, name: str) -> int:
        """How many elements an input has."""
        return self._tensors[name].size

    def ids(self, name: str, count: int) -> tuple[int, ...]:
        """The first elements of an input in their order, as integers."""
        return tuple(self._tensors[name].reshape(-1)[:count].tolist())

    def texts(self, name: str) -> tuple[str, ...]:
        """All elements of a STRING input. Raises RequestError for what is not UTF-8."""
        values = self._tensors[name].reshape(-1) if name in self._tensors else ()
        try:
            return tuple(value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values)
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is not valid UTF-8 (byte {error.start}); send UTF-8") from None

    def text(self, name: str) -> str | None:
        """The one text of a STRING input; None where it is absent."""
        texts = self.texts(name)
        if len(texts) > 1:
            raise RequestError(f"{name} holds {len(texts)} texts; send exactly one")
        return texts[0] if texts else None

    def json_list(self, name: str) -> list[Any] | None:
        """A STRING input that holds a JSON list; None where it is absent."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = parse_json(text)
        except ValueError as error:
            raise RequestError(f"{name} is not valid JSON: {error}") from None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise RequestError(f"{name} is not a JSON list of objects")
        return value

    def words(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Token sequences in FasterTransformer's layout: row 0 ids, row 1 where each word ends, both padded with -1."""
        if name not in self._tensors:
            return ()
        rows = self._tensors[name].reshape(2, -1).tolist()
        ends = [end for end in rows[1] if end >= 0]
        if ends != sorted(set(ends)) or 0 in ends or (ends and ends[-1] > len(rows[0])):
            raise RequestError(f"{name} has the ends {ends} for {len(rows[0])} ids; row 1 holds each word's end, "
                               "cumulative and rising, then -1")
        words = tuple(tuple(rows[0][start:end]) for start, end in zip([0, *ends], ends, strict=False))
        if any(token_id < 0 for word in words for token_id in word):
            raise RequestError(f"{name} has a negative id inside a word; pad only after the last one")
        return words


def word_table(words: list[list[int]]) -> np.ndarray:
    """The layout that `Inputs.words` reads: [1, 2, X] int32."""
    ids = [token_id for word in words for token_id in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    width = max(len(ids), 1)
    table = np.full((1, 2, width), -1, np.int32)
    table[0, 0, :len(ids)] = ids
    table[0, 1, :len(ends)] = ends
    return table
