"""Hugging Face source: a checkpoint folder in the place of a workspace, read by the engine without converting it.

Streams canonical tensors straight from the checkpoint's files; only the tokenizer is prepared, once, in a cache folder.
Registered in setup.py as the entry point `millrace.model_sources`, which backend.model_source loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.config import EngineConfig, ModelConfig
from backend.model_source import StoredTensor
from converter.canonical import CanonicalModel, canonicalise, outline
from converter.checkpoint import HF_CONFIG, META_CONFIG, open_config, open_folder
from converter.convert import default_engine, tokenizer_folder
from converter.quantization import check_format
from converter.tokenizer_cache import cached_tokenizer
from converter.vocabulary import with_tokenizer_ids


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """A ModelSource over a Hugging Face or Meta checkpoint folder. Picklable: each rank opens the files itself."""

    path: Path
    model: ModelConfig
    engine: EngineConfig
    tokenizer_dir: Path
    model_format: str | None = None

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every weight once, in the order of the model; nothing is read until a tensor is sliced."""
        yield from _canonical(self.path, self.model.model_name, self.model_format).tensors.items()


def open_checkpoint(folder: Path, model_name: str | None, model_format: str | None = None) -> HuggingFaceSource | None:
    """None if the folder holds no checkpoint. Raises CheckpointError, TokenizerError or TemplateError if it is bad, or
    not of the format that it must be of (see open_model)."""
    if not any((folder / name).is_file() for name in (HF_CONFIG, META_CONFIG)):
        return None
    canonical = _canonical(folder, model_name or folder.resolve().name, model_format)
    tokenizer_dir, info = cached_tokenizer(tokenizer_folder(folder), model_name)
    model = with_tokenizer_ids(canonical, info)
    return HuggingFaceSource(folder, model, default_engine(model), tokenizer_dir, model_format)


def read_outline(path: Path) -> ModelConfig | None:
    """The model of a Hugging Face folder or of its config.json, without its weights; None if there is no such file.

    Registered in setup.py as the entry point `millrace.model_outlines`, which backend.model_outline loads."""
    file = path if path.is_file() else path / HF_CONFIG
    return outline(open_config(file), file.resolve().parent.name) if file.is_file() else None


def _canonical(folder: Path, model_name: str, model_format: str | None) -> CanonicalModel:
    checkpoint = open_folder(folder, model_format)
    canonical = canonicalise(checkpoint, model_name)
    check_format(checkpoint, canonical.model.quant, model_format)
    return canonical
