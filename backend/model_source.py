"""Model source: where an engine gets a model from, be it a workspace or a Hugging Face folder.

A workspace is read by `backend.workspace`. Other formats come as plug-ins of the entry-point group
`millrace.model_sources`, which the converter registers in setup.py: the backend never imports the converter.
Used by engine (configuration, tokenizer) and worker (tensors). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from backend.config import EngineConfig, ModelConfig
from backend.errors import CheckpointError, ConfigError, WorkspaceError
from backend.workspace import Workspace

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP = "millrace.model_sources"
MODEL_FORMATS = ("hf", "awq", "llama")  # Hugging Face's; the same, quantised; Meta's


class StoredTensor(Protocol):
    """A tensor that is read where it is sliced: `tensor[a:b]`, `tensor[:, a:b]`, `tensor[:]` give a torch.Tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any) -> Any: ...


@runtime_checkable
class ReadableTensor(StoredTensor, Protocol):
    """A StoredTensor that can be read into memory which is already there, by several threads at once."""

    @property
    def dtype(self) -> torch.dtype: ...

    def read_into(self, index: tuple[slice, ...], out: torch.Tensor) -> None:
        """Fills `out`, contiguous in the host's memory and of self.dtype, with self[index].

        Raises CheckpointError, naming the tensor."""
        ...


class ModelSource(Protocol):
    """A model that can be loaded. Picklable: each tensor-parallel rank opens its own copy.

    path            the folder, for messages
    model           what it is;  engine  its defaults for running it
    tokenizer_dir   folder with tokenizer.json and tokenizer_config.json"""

    path: Path
    model: ModelConfig
    engine: EngineConfig
    tokenizer_dir: Path

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every weight once, under its canonical name, in the order of the layers."""
        ...


def open_model(path: str | Path, model_name: str | None = None, model_format: str | None = None) -> ModelSource:
    """The source for a folder, by what it holds.

    model_name    the built-in chat template where the folder brings none (a workspace always brings its own)
    model_format  of MODEL_FORMATS, for a folder that must be of that one; None: as it is
    Raises WorkspaceError, CheckpointError or ConfigError, naming the folder and the cure."""
    if model_format not in (None, *MODEL_FORMATS):
        raise ConfigError(f"model_format={model_format!r} is not known; use one of {', '.join(MODEL_FORMATS)}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise WorkspaceError(f"{folder} is not a folder; give a workspace or a Hugging Face checkpoint folder")
    if Workspace.looks_like(folder):
        return _open_workspace(folder, model_format)
    openers = entry_points(group=ENTRY_POINT_GROUP)
    for opener in openers:
        source = opener.load()(folder, model_name, model_format)
        if source is not None:
            return source
    if not openers:
        raise CheckpointError(f"{folder} is no workspace, and nothing that reads other formats is installed; "
                              "run `pip install -e .` in Millrace's folder, or convert it first")
    raise CheckpointError(f"{folder} is neither a workspace (no triton_models/weights/config.ini) "
                          "nor a Hugging Face checkpoint (no config.json)")


def _open_workspace(folder: Path, model_format: str | None) -> Workspace:
    workspace = Workspace(folder)
    is_quantised = workspace.model.quant is not None
    if model_format is not None and not (model_format == "awq" and is_quantised):
        raise WorkspaceError(f"{folder} is a workspace of {'quantised' if is_quantised else 'unquantised'} weights, "
                             f"not of the format {model_format}; leave the model format out")
    return workspace
