"""Workspace writer: a workspace appears complete or not at all.

Everything is written into a hidden folder beside the destination and renamed into place at the end; on any error,
Ctrl-C included, that folder goes and what was at the destination stays. A workspace is also a Triton model repository:
the template's models, and links under the names that they are served by. Used by convert.py."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.config import EngineConfig, render_config
from backend.errors import WorkspaceError
from backend.workspace import CONFIG, WEIGHTS, weight_file
from converter.canonical import CanonicalModel
from converter.lazy_tensor import LazyTensor
from converter.safetensors_file import write_safetensors
from protocol.models import FOLDERS, TURBOMIND

# Beside this package, both in a checkout and where setup.py installs it.
TEMPLATE = Path(__file__).resolve().parent.parent / "workspace_template"
MODEL_REPOSITORY = "model_repository"  # what tritonserver is given
_SPARE_BYTES = 64 << 20  # tokenizer, template and file system overhead


def check_destination(destination: Path, source: Path, force: bool) -> None:
    """Raises WorkspaceError if writing the workspace would delete something that is no workspace, or where we stand."""
    destination, source = destination.resolve(), source.resolve()
    if destination == source or destination in source.parents:
        raise WorkspaceError(f"{destination} holds the checkpoint itself; choose another --dst_path")
    if destination in (current := Path.cwd(), *current.parents):
        raise WorkspaceError(f"{destination} is the current folder or holds it, so it cannot be replaced; "
                             "choose another --dst_path, like ./workspace")
    is_empty_folder = destination.is_dir() and not any(destination.iterdir())
    if destination.exists() and not is_empty_folder and not (destination / CONFIG).is_file() and not force:
        raise WorkspaceError(f"{destination} exists and is no workspace; choose another --dst_path, "
                             "or replace it with --force")


def check_space(destination: Path, num_bytes: int) -> None:
    """Raises WorkspaceError if num_bytes do not fit beside an old workspace, which goes only at the end."""
    folder = next(parent for parent in destination.resolve().parents if parent.is_dir())
    needed, free = num_bytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise WorkspaceError(f"{folder} has {free / 2**30:.1f} GiB free, but the workspace needs "
                             f"{needed / 2**30:.1f} GiB; free some space or choose another --dst_path")


@contextmanager
def new_workspace(destination: Path) -> Iterator[Path]:
    """A folder to write into, already holding the template; it becomes `destination` when the block ends well.

    Raises WorkspaceError for what the file system refuses, a full disk for one."""
    destination = destination.resolve()
    partial: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        shutil.copytree(TEMPLATE, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        _link_models(partial)
        (partial / WEIGHTS).mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o777 & ~_umask())  # mkdtemp's folder is for its owner only
        _swap(partial, destination)
    except OSError as error:
        first = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise WorkspaceError(f"{destination} cannot be written: {first}; nothing was left behind, choose another "
                             "--dst_path or make room") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def write_weights(workspace: Path, canonical: CanonicalModel, progress: Callable[[int], object]) -> None:
    """One safetensors file per layer, and one each for what comes before and after the layers."""
    files: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in canonical.tensors.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        files.setdefault(weight_file(layer, name), {})[name] = tensor
    for file_name, tensors in files.items():
        write_safetensors(workspace / WEIGHTS / file_name, tensors, progress)


def write_config(workspace: Path, canonical: CanonicalModel, engine: EngineConfig) -> None:
    """config.ini, and the model's name where clients ask a Triton server for it: in turbomind's configuration."""
    (workspace / CONFIG).write_text(render_config(canonical.model, engine), encoding="utf-8")
    name = json.dumps(canonical.model.model_name, ensure_ascii=False)
    with (workspace / MODEL_REPOSITORY / TURBOMIND / "config.pbtxt").open("a", encoding="utf-8") as turbomind:
        turbomind.write(f'parameters {{ key: "model_name" value: {{ string_value: {name} }} }}\n')


def _link_models(workspace: Path) -> None:
    """model_repository/NAME → ../triton_models/FOLDER: relative, so that a moved or mounted workspace still works.

    Made here rather than kept in the template, because a wheel carries no links."""
    repository = workspace / MODEL_REPOSITORY
    repository.mkdir()
    for name, folder in FOLDERS.items():
        (repository / name).symlink_to(Path("..") / "triton_models" / folder)


def _swap(new: Path, destination: Path) -> None:
    """Renames `new` to `destination`; what was there is moved aside first, and back if that fails."""
    if not destination.exists():
        new.rename(destination)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old-", dir=destination.parent)) / destination.name
    try:
        destination.rename(aside)
        try:
            new.rename(destination)
        except BaseException:
            aside.rename(destination)
            raise
    finally:
        if destination.exists():
            shutil.rmtree(aside.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
