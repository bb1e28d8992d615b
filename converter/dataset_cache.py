"""Dataset cache: the files of well-known calibration datasets, where they are in the local Hugging Face caches.

Looks in the hub's cache (HF_HUB_CACHE, HF_HOME/hub) and in that of the `datasets` library (HF_DATASETS_CACHE,
HF_HOME/datasets); never downloads. Used by calibration_text.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Dataset:
    """repositories: its names on the hub, the first to be recommended
    patterns     globs of the files below a snapshot, best first
    fetch        what `hf download` is told after the repository's name"""

    repositories: tuple[str, ...]
    patterns: tuple[str, ...]
    fetch: str


DATASETS: Mapping[str, Dataset] = {
    "ptb": Dataset(("ptb-text-only/ptb_text_only", "ptb_text_only"),
                   ("penn_treebank/train/*.parquet", "penn_treebank/*train*.parquet", "**/*train*.parquet"),
                   "--revision refs/convert/parquet"),
    "wikitext2": Dataset(("Salesforce/wikitext", "wikitext"),
                         ("wikitext-2-raw-v1/train*.parquet", "wikitext-2-raw-v1/train/*.parquet"),
                         "--include 'wikitext-2-raw-v1/*'"),
    "c4": Dataset(("allenai/c4", "c4"), ("en/c4-train.*.json.gz",), "en/c4-train.00000-of-01024.json.gz"),
    "pileval": Dataset(("mit-han-lab/pile-val-backup", "monology/pile-uncopyrighted"),
                       ("val.jsonl.zst", "val.jsonl*"), "val.jsonl.zst"),
}
# Parts of the folder names of the `datasets` library that say which configuration an .arrow file is of.
_CONFIGURATIONS = {"ptb": "penn_treebank", "wikitext2": "wikitext-2-raw-v1", "c4": "", "pileval": ""}


def cached_files(name: str) -> list[Path]:
    """The first file that serves as calibration text, as a list of one; or all parts of a small dataset's split.

    Raises ConfigError, which says where it looked and how to fetch it."""
    dataset = DATASETS[name]
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    arrows = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    for repository in dataset.repositories:
        folder = hub / f"datasets--{repository.replace('/', '--')}" / "snapshots"
        for pattern in dataset.patterns:
            files = sorted(folder.glob(f"*/{pattern}"))
            if files:
                return _of_one_snapshot(folder, files)[:1] if name == "c4" else _of_one_snapshot(folder, files)
        stem = repository.replace("/", "___").lower()
        files = sorted(file for file in (arrows / stem).glob("**/*train*.arrow") if _CONFIGURATIONS[name] in str(file))
        if files:
            return files[:1]
    raise ConfigError(f"{name} is not in the Hugging Face caches {hub} and {arrows}; fetch it with `hf download "
                      f"{dataset.repositories[0]} --repo-type dataset {dataset.fetch}`, or give a file of your own")


def _of_one_snapshot(folder: Path, files: list[Path]) -> list[Path]:
    """Those of the snapshot that was used last: several revisions may lie side by side."""
    newest = max({folder / file.relative_to(folder).parts[0] for file in files}, key=lambda path: path.stat().st_mtime)
    return [file for file in files if newest in file.parents]
