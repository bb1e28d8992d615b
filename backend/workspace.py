"""Workspace: the paths inside the folder that `convert` writes, their validation, and its weights as a model source.

The converter writes to these paths, engine and worker read from them; the names exist only here.
Imports no torch until a tensor is read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backend.config import EngineConfig, ModelConfig, read_config
from backend.errors import WorkspaceError

if TYPE_CHECKING:
    from backend.safetensors_file import FileTensor

WEIGHTS = Path("triton_models/weights")
TOKENIZER = Path("triton_models/tokenizer")
CONFIG = WEIGHTS / "config.ini"
PAST_KV_SCALE = WEIGHTS / "past_kv_scale.safetensors"  # calibrated scales of the KV cache; need not be there


def weight_file(layer: int | None, canonical_name: str) -> str:
    """File in weights/ that holds a canonical tensor: one for the embeddings, one per layer, one for the output."""
    if layer is not None:
        return f"layers.{layer}.safetensors"
    return "embeddings.safetensors" if canonical_name == "tok_embeddings.weight" else "output.safetensors"


def weight_files(num_layers: int) -> list[str]:
    """All files of a complete weights/ folder, in the order of the model."""
    layers = [weight_file(layer, "") for layer in range(num_layers)]
    return ["embeddings.safetensors", *layers, "output.safetensors"]


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace that can be loaded; a ModelSource. Raises WorkspaceError or ConfigError where it is incomplete."""

    path: Path
    model: ModelConfig = field(init=False)
    engine: EngineConfig = field(init=False)

    def __post_init__(self) -> None:
        if not (self.path / CONFIG).is_file():
            raise WorkspaceError(f"{self.path} is no workspace: it has no {CONFIG}; make one with: "
                                 f"convert MODEL_NAME MODEL_PATH --force --dst_path {shlex.quote(str(self.path))}")
        model, engine = read_config(self.path / CONFIG)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "engine", engine)
        for needed in (TOKENIZER / "tokenizer.json", *(WEIGHTS / name for name in weight_files(model.num_layers))):
            if not (self.path / needed).is_file():
                raise WorkspaceError(f"workspace {self.path} is incomplete: {needed} is missing; convert again")
        left_over = {file.name for file in self.weights_dir.glob("layers.*.safetensors")}
        left_over -= set(weight_files(model.num_layers))
        if left_over:
            raise WorkspaceError(f"workspace {self.path} holds {min(left_over)}, but its config.ini says num_layer="
                                 f"{model.num_layers}; correct num_layer, or convert again")

    @staticmethod
    def looks_like(folder: Path) -> bool:
        return (folder / "triton_models").is_dir()

    @property
    def weights_dir(self) -> Path:
        return self.path / WEIGHTS

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / TOKENIZER

    def tensors(self) -> Iterator[tuple[str, FileTensor]]:
        """Every weight once, in the order of the layers; nothing but headers is read until a tensor is sliced."""
        from backend.safetensors_file import read_safetensors  # imports torch

        for name in weight_files(self.model.num_layers):
            yield from read_safetensors(self.weights_dir / name, cure="convert again").items()
