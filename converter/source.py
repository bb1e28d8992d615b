"""Hugging Face source: a checkpoint folder in the place of a workspace, read by the engine without converting it.

Streams canonical tensors straight from the checkpoint's files; only the tokenizer is prepared, once, in a cache folder.
Registered in setup.py as the entry point `millrace.model_sources`, which backend.model_source loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.config import EngineConfig, ModelConfig
from backend.model_source import StoredTensor
from converter.canonical import CanonicalModel, canonicalise
from converter.checkpoint import HF_CONFIG, META_CONFIG, open_hf, open_meta
from converter.convert import default_engine, tokenizer_folder
from converter.tokenizer_cache import cached_tokenizer
from converter.vocabulary import with_tokenizer_ids


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """A ModelSource over a Hugging Face or Meta checkpoint folder. Picklable: each rank opens the files itself."""

    path: Path
    model: ModelConfig
    engine: EngineConfig
    tokenizer_dir: Path

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every weight once, in the order of the model; nothing is read until a tensor is sliced."""
        yield from _canonical(self.path, self.model.model_name).tensors.items()


def open_checkpoint(folder: Path, model_name: str | None) -> HuggingFaceSource | None:
    """None if the folder holds no checkpoint. Raises CheckpointError, TokenizerError or TemplateError if it is bad."""
    if not any((folder / name).is_file() for name in (HF_CONFIG, META_CONFIG)):
        return None
    canonical = _canonical(folder, model_name or folder.resolve().name)
    tokenizer_dir, info = cached_tokenizer(tokenizer_folder(folder), model_name)
    model = with_tokenizer_ids(canonical, info)
    return HuggingFaceSource(folder, model, default_engine(model), tokenizer_dir)


def _canonical(folder: Path, model_name: str) -> CanonicalModel:
    is_hf = (folder / HF_CONFIG).is_file()
    return canonicalise(open_hf(folder) if is_hf else open_meta(folder), model_name)
