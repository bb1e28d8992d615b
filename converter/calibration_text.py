"""Calibration text: the documents that a model is observed on, from a file, a dataset of the local cache, or built in.

Files: .txt, .jsonl or .json (a record a line), .parquet, .arrow; .gz and .zst of these. Nothing is ever downloaded.
Used by calibration_windows.py."""

from __future__ import annotations

import gzip
import importlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from backend.errors import ConfigError
from converter.dataset_cache import DATASETS, cached_files

BUILT_IN = Path(__file__).with_name("calibration_text.txt")
FIELDS = ("text", "content", "sentence", "messages")  # of a record; the first that it has is its text
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", ".arrow")
PIECE_CHARACTERS = 1 << 16  # of a .txt: what is chosen as one document
_READ_RECORDS = 1 << 20  # of one file; the first million are sample enough

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """name for messages; documents: texts, or conversations as lists of messages, in random order."""

    name: str
    documents: Sequence[str | Messages]
    is_built_in: bool = False


def read_calibration_text(dataset: str | None, seed: int = 0) -> CalibrationText:
    """dataset: a file, one of DATASETS, or None for the built-in text.

    Raises ConfigError for a file that cannot be read or holds no text, and for a dataset that is not in the cache."""
    if dataset is None:
        return CalibrationText("the built-in text", _pieces(BUILT_IN.read_text(encoding="utf-8")), is_built_in=True)
    if Path(dataset).is_file():
        files = [Path(dataset)]
    elif dataset in DATASETS:
        files = cached_files(dataset)
    else:
        raise ConfigError(f"{dataset} is neither a file nor a dataset that is known; give a {', '.join(SUFFIXES)} file,"
                          f" or one of {', '.join(DATASETS)}")
    documents = [document for file in files for document in _read(file)]
    if not documents:
        raise ConfigError(f"{files[0]} holds no text; a record needs one of the fields {', '.join(FIELDS)}")
    random.Random(seed).shuffle(documents)
    return CalibrationText(dataset, documents)


def _read(file: Path) -> list[str | Messages]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES or (packing and kind in (".parquet", ".arrow")):
        raise ConfigError(f"{file} is of no kind that can be read; use {', '.join(SUFFIXES)}, "
                          "or .txt.gz, .jsonl.gz, .jsonl.zst")
    try:
        if kind == ".txt":
            with _open(file, packing) as stream:
                return _pieces(stream.read())
        records = _json_lines(file, packing) if kind in (".jsonl", ".json") else _table_rows(file, kind)
        return [text for record, _ in zip(records, range(_READ_RECORDS), strict=False) if (text := _text_of(record))]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _pieces(text: str) -> list[str]:
    """A text cut at line ends into pieces of PIECE_CHARACTERS or a little less."""
    pieces = []
    while len(text) > PIECE_CHARACTERS:
        end = text.rfind("\n", 1, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
        pieces.append(text[:end])
        text = text[end:]
    return [piece for piece in (*pieces, text) if piece.strip()]


def _text_of(record: Any) -> str | Messages | None:
    """None for an empty record."""
    value = record if isinstance(record, str) else None
    if isinstance(record, dict):
        value = next((record[field] for field in FIELDS if record.get(field)), None)
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, (list, tuple)) and all(isinstance(message, dict) for message in value):
        return list(value) or None
    return None


def _json_lines(file: Path, packing: str) -> Iterator[Any]:
    with _open(file, packing) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{file}, line {number}: no JSON ({error}); "
                                      "a .jsonl file has one JSON object a line") from None


def _table_rows(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    arrow = _library("pyarrow", file)
    try:
        if kind == ".parquet":
            table = _library("pyarrow.parquet", file)
            columns = [name for name in table.read_schema(file).names if name in FIELDS]
            batches = table.ParquetFile(file).iter_batches(columns=columns)
        else:
            batches = _library("pyarrow.ipc", file).open_stream(arrow.memory_map(str(file)))
        for batch in batches:
            yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise ConfigError(f"{file} is damaged or no {kind} file ({str(error).splitlines()[0]}); "
                          "fetch it again") from None


def _open(file: Path, packing: str) -> TextIO:
    opens: dict[str, Callable[..., TextIO]] = {"": open, ".gz": gzip.open}
    opener = opens.get(packing) or _library("zstandard", file).open
    return opener(file, "rt", encoding="utf-8")


def _library(name: str, file: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"reading {file} needs {name.partition('.')[0]}, which is not installed; "
                          "run: pip install -e '.[calibration]' in Millrace's folder") from None
