"""Convert: a checkpoint folder becomes a workspace, in five calls.

open → canonicalise → prepare the tokenizer → check → write. Weights are checked (shape, finite values) while they are
read and never held as a whole, so memory does not grow with the model. Used by __main__.py, and from Python."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from backend.accuracy_report import read_reports, store_report
from backend.chat_templates import builtin_template
from backend.config import EngineConfig, ModelConfig, check_engine, dtype_name
from backend.errors import CheckpointError, ConfigError, TemplateError, TokenizerError
from backend.workspace import TOKENIZER, WEIGHTS
from converter.canonical import canonicalise
from converter.checkpoint import Checkpoint, open_folder
from converter.quantization import check_format
from converter.tokenizer import prepare_tokenizer
from converter.vocabulary import with_tokenizer_ids
from converter.workspace_writer import check_destination, check_space, new_workspace, write_config, write_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written: num_bytes of weights in duration_s seconds."""

    workspace: Path
    model: ModelConfig
    engine: EngineConfig
    num_bytes: int
    duration_s: float


def convert_checkpoint(model_name: str, model_path: Path, model_format: str = "hf",
                       dst_path: Path = Path("workspace"), *, dtype: str | None = None,
                       tokenizer_path: Path | None = None, tp: int = 1, session_len: int | None = None,
                       quant_policy: int = 0, use_context_fmha: bool = True, group_size: int | None = None,
                       force: bool = False, show_progress: bool = False) -> Conversion:
    """Writes the workspace `dst_path`, replacing a workspace that is there.

    model_format    of MODEL_FORMATS; quantised weights are recognised under hf too, awq insists on them
    dtype           fp16, bf16 or fp32, or torch's names of them; None keeps the checkpoint's
    tokenizer_path  a tokenizer's file or folder; None: the checkpoint's own
    group_size      that the weights must be quantised in; None: any, and unquantised ones
    force           also replace a destination that is no workspace
    Raises MillraceError, and then leaves the destination as it was."""
    started = time.perf_counter()
    if not model_name.strip():
        raise ConfigError("MODEL_NAME is empty; give the model's name, like internlm2-chat-7b")
    check_destination(dst_path, model_path, force)
    checkpoint = _open(model_path, model_format)
    canonical = canonicalise(checkpoint, model_name, dtype_name(dtype) if dtype else None)
    check_format(checkpoint, canonical.model.quant, model_format, group_size)
    engine = default_engine(canonical.model).with_options({
        "tp": tp, "session_len": session_len, "quant_policy": quant_policy, "use_context_fmha": use_context_fmha})
    check_engine(canonical.model, engine)
    check_space(dst_path, canonical.num_bytes)
    with new_workspace(dst_path) as workspace:
        tokenizer = prepare_tokenizer(tokenizer_folder(model_path, tokenizer_path), workspace / TOKENIZER, model_name)
        _warn_if_unknown(model_name)
        canonical = dataclasses.replace(canonical, model=with_tokenizer_ids(canonical, tokenizer))
        write_config(workspace, canonical, engine)
        with tqdm(total=canonical.num_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc="weights",
                  disable=None if show_progress else True) as bar:  # None: only on a terminal
            write_weights(workspace, canonical, bar.update)
        for report in read_reports(model_path):
            store_report(workspace / WEIGHTS, report)
    return Conversion(dst_path, canonical.model, engine, canonical.num_bytes, time.perf_counter() - started)


def default_engine(model: ModelConfig) -> EngineConfig:
    """As long sessions as the model was trained for, and no longer than a sliding window is exact."""
    longest = model.max_position_embeddings
    return EngineConfig(session_len=min(longest, model.sliding_window or longest))


def tokenizer_folder(model_path: Path, tokenizer_path: Path | None = None) -> Path:
    """Where the tokenizer is: as told, else with the model, else beside it, as in Meta's downloads.

    Raises TokenizerError for a file whose name says that it would not be the one read."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if tokenizer_path is not None:
        if not tokenizer_path.is_dir() and tokenizer_path.name not in names:
            raise TokenizerError(f"{tokenizer_path} is no tokenizer's file by its name; give a folder, or a file "
                                 f"that is called {' or '.join(names)}")
        return tokenizer_path if tokenizer_path.is_dir() else tokenizer_path.parent
    beside = not any((model_path / name).is_file() for name in names) and (
        any((model_path.parent / name).is_file() for name in names))
    return model_path.parent if beside else model_path


def _warn_if_unknown(model_name: str) -> None:
    """For a checkpoint that brings its own template, whose name is then only a label, if perhaps a misspelt one."""
    try:
        builtin_template(model_name)
    except TemplateError as error:
        logger.warning("%s; the checkpoint brings its own template, which is used", error)


def _open(model_path: Path, model_format: str) -> Checkpoint:
    if not model_path.is_dir():
        is_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(model_path)) and not model_path.parent.exists()
        cure = (f"download the checkpoint first: hf download {model_path} --local-dir ./checkpoint" if is_hub_name
                else "give the folder of a downloaded checkpoint")
        raise CheckpointError(f"{model_path} is no folder; {cure}")
    return open_folder(model_path, model_format)
