"""Config faults: what is wrong with a config.ini that is not TOML, in words that a person who edited it can act on.

Used by config.py."""

from __future__ import annotations

import re
from pathlib import Path

import tomli

# Keys, and raw weight files beside it, that only an original LMDeploy workspace has.
_LMDEPLOY_KEYS = re.compile(r"^(cache_chunk_size|step_length|max_context_token_num) *=", re.MULTILINE)
_LMDEPLOY_WEIGHTS = "*.weight"
_LINE = re.compile(r"at line (\d+)")  # how tomli says it; at the document's end it says no number
_BARE_VALUE = re.compile(r"^\s*(\w+)\s*=\s*([A-Za-z][^\"'#]*?)\s*(#.*)?$")


def explain_syntax(path: Path, text: str, error: tomli.TOMLDecodeError) -> str:
    """One line: the place and, where it can be told, the cure."""
    if _LMDEPLOY_KEYS.search(text) or any(path.parent.glob(_LMDEPLOY_WEIGHTS)):
        return (f"{path} is from an original LMDeploy workspace; convert the checkpoint again: "
                "convert MODEL_NAME MODEL_PATH")
    found = _LINE.search(str(error))
    if found is None:
        return f"{path} is not valid TOML: {error}"
    number = int(found[1])
    line = text.splitlines()[number - 1]
    bare = _BARE_VALUE.match(line)
    if bare and bare[2]:
        return f'{path}, line {number}: put quotes around {bare[2]}: {bare[1]} = "{bare[2]}"'
    return f"{path}, line {number}: {line.strip()!r} is not valid TOML: {error}"
