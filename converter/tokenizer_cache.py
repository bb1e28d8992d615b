"""Tokenizer cache: the prepared tokenizer of a checkpoint that is used without a workspace.

A folder under ~/.cache/millrace/tokenizers (or $XDG_CACHE_HOME) per content: of the tokenizer's files, the model name,
which may choose the chat template, and the code that prepares it. Written beside and renamed, so that processes that
start together agree. Used by source.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from backend import tokenizer_files
from backend.errors import TokenizerError
from converter import byte_level_tokenizer, sentencepiece_model, sentencepiece_tokenizer, tokenizer
from converter.tokenizer import TokenizerInfo

_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
_PREPARING_MODULES = (tokenizer, sentencepiece_tokenizer, sentencepiece_model, byte_level_tokenizer, tokenizer_files)
_LARGEST_BYTES = 256 << 20  # no tokenizer's file is larger
_INFO = "millrace_tokenizer.json"


def cached_tokenizer(source_dir: Path, model_name: str | None) -> tuple[Path, TokenizerInfo]:
    """The folder with tokenizer.json and tokenizer_config.json. Raises what prepare_tokenizer raises."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace" / "tokenizers"
    folder = cache / _key(source_dir, model_name)
    if not (folder / _INFO).is_file():
        try:
            _fill(folder, source_dir, model_name)
        except OSError as error:
            raise TokenizerError(f"{folder} cannot be written: {error.strerror}; set XDG_CACHE_HOME to another "
                                 "folder, or convert the checkpoint") from None
    return folder, TokenizerInfo(**json.loads((folder / _INFO).read_text(encoding="utf-8")))


def _fill(folder: Path, source_dir: Path, model_name: str | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        info = tokenizer.prepare_tokenizer(source_dir, partial, model_name)
        (partial / _INFO).write_text(json.dumps(dataclasses.asdict(info)), encoding="utf-8")
        partial.rename(folder)
    except OSError:
        if not (folder / _INFO).is_file():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _key(source_dir: Path, model_name: str | None) -> str:
    digest = hashlib.sha256(f"{model_name}\0".encode())
    for module in _PREPARING_MODULES:
        digest.update(Path(module.__file__).read_bytes())
    for file in sorted(file for pattern in _PATTERNS for file in source_dir.glob(pattern)):
        if file.is_file() and file.stat().st_size <= _LARGEST_BYTES:
            digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:32]
