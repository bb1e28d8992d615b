"""Calibration text: the documents that a model is observed on, from a file, a dataset of the local cache, or built in.

Files: .txt, .jsonl or .json (a record a line), .parquet, .arrow; .gz and .zst of these. Nothing is ever downloaded.
Of a large one a random sample is held in memory, and no more. Used by calibration_windows.py and
benchmarks/accuracy.py."""

from __future__ import annotations

import gzip
import heapq
import importlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
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
TOKEN_CHARACTERS = 32  # of a token, on average over a text, at most: so many are read for each that is wanted
_BATCH_ROWS = 1024  # of a .parquet file, in memory at a time
_READ_RECORDS = 1 << 20  # of one file; the first million are sample enough

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """name for messages; documents: texts, or conversations as lists of messages, in random order."""

    name: str
    documents: Sequence[str | Messages]
    is_built_in: bool = False


def read_calibration_text(dataset: str | None, num_tokens: int, seed: int = 0) -> CalibrationText:
    """dataset     a file, one of DATASETS, or None for the built-in text, which is short
    num_tokens  that the caller has use for: of a larger text as many documents are taken, at random

    Raises ConfigError for a file that cannot be read or holds no text, and for a dataset that is not in the cache."""
    if dataset is None:
        return CalibrationText("the built-in text", list(_read(BUILT_IN)), is_built_in=True)
    if Path(dataset).is_file():
        files = [Path(dataset)]
    elif dataset in DATASETS:
        files = cached_files(dataset)
    else:
        raise ConfigError(f"{dataset} is neither a file nor a dataset that is known; give a {', '.join(SUFFIXES)} file,"
                          f" or one of {', '.join(DATASETS)}")
    documents = _sample((document for file in files for document in _read(file)), num_tokens * TOKEN_CHARACTERS, seed)
    if not documents:
        is_plain = ".txt" in files[0].suffixes
        raise ConfigError(f"{files[0]} " + ("is empty; give a longer text" if is_plain else
                          "holds no text; a record, in .json and .jsonl one object a line, needs one of the fields "
                          f"{', '.join(FIELDS)}"))
    return CalibrationText(dataset, documents)


def contents(messages: Messages) -> str:
    """A conversation as plain text."""
    return "\n\n".join(str(message.get("content") or "") for message in messages)


def _sample(documents: Iterable[str | Messages], num_characters: int, seed: int) -> list[str | Messages]:
    """As many documents as make up num_characters, or all, in random order; each is as likely to be among them.

    A random number is drawn for each, and those with the smallest stay: no more is in memory than is returned, and a
    document. A short one counts as a token, so that there are not too many."""
    chance = random.Random(seed)
    kept: list[tuple[float, int, int, str | Messages]] = []  # a heap: the largest number, negated, is first
    total = 0
    for index, document in enumerate(documents):
        size = max(TOKEN_CHARACTERS, len(document if isinstance(document, str) else contents(document)))
        heapq.heappush(kept, (-chance.random(), index, size, document))
        total += size
        while total - kept[0][2] >= num_characters:
            total -= heapq.heappop(kept)[2]
    found = [document for _, _, _, document in sorted(kept, key=lambda entry: entry[1])]
    random.Random(seed).shuffle(found)
    return found


def _read(file: Path) -> Iterator[str | Messages]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES or (packing and kind in (".parquet", ".arrow")):
        raise ConfigError(f"{file} is of no kind that can be read; use {', '.join(SUFFIXES)}, "
                          "or .txt.gz, .jsonl.gz, .jsonl.zst")
    try:
        if kind == ".txt":
            with _open(file, packing) as stream:
                yield from _pieces(stream)
            return
        records = _json_lines(file, packing) if kind in (".jsonl", ".json") else _table_rows(file, kind)
        yield from (text for record in itertools.islice(records, _READ_RECORDS) if (text := _text_of(record)))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _pieces(stream: TextIO) -> Iterator[str]:
    """A text cut at line ends into pieces of PIECE_CHARACTERS or a little less."""
    text = stream.read(PIECE_CHARACTERS + 1)
    while text:
        is_last = len(text) <= PIECE_CHARACTERS
        end = len(text) if is_last else text.rfind("\n", 1, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
        if text[:end].strip():
            yield text[:end]
        text = text[end:]
        text += stream.read(PIECE_CHARACTERS + 1 - len(text))


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
            batches = table.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns)
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
