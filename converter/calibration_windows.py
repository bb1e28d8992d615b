"""Calibration windows: documents as token windows of one length, drawn at random.

The documents' tokens form one stream, each document begun as the model's own tokenizer begins a text; it is cut into
windows from a random place on, of which as many as are asked for are drawn without repeats. Used by kv_qparams.py and
auto_awq.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from backend.errors import ConfigError
from backend.model_source import ModelSource
from backend.text.front_end import TextFrontEnd
from converter.calibration_text import CalibrationText

logger = logging.getLogger(__name__)
_SPARE = 4  # documents are tokenised until there is text for so many times the windows that are drawn


def draw_windows(text: CalibrationText, source: ModelSource, samples: int, seqlen: int, seed: int = 0) -> Tensor:
    """Token ids [samples, seqlen] int64; of the built-in text as many, and as long, as it has.

    Raises ConfigError for a text that is too short, with what would work."""
    stream = _tokens(text, TextFrontEnd(source), _SPARE * samples * seqlen)
    if len(stream) < samples * seqlen:
        if not text.is_built_in:
            raise ConfigError(_too_short(text.name, len(stream), samples, seqlen))
        seqlen = min(seqlen, len(stream))
        samples = len(stream) // seqlen
        logger.warning("%s has %s tokens: %s samples of %s tokens are taken; a text of your own, like what the model "
                       "will read, calibrates better (--calib_dataset)", text.name, f"{len(stream):,}", samples, seqlen)
    chance = random.Random(seed)
    start = chance.randrange(len(stream) % seqlen + 1)
    windows = torch.tensor(stream[start : start + len(stream) // seqlen * seqlen]).view(-1, seqlen)
    return windows[sorted(chance.sample(range(len(windows)), samples))]


def _tokens(text: CalibrationText, front_end: TextFrontEnd, enough: int) -> list[int]:
    stream: list[int] = []
    for document in text.documents:
        stream += front_end.prompt_ids(document) if isinstance(document, str) else _conversation(front_end, document)
        if len(stream) >= enough:
            break
    return stream


def _conversation(front_end: TextFrontEnd, messages: Sequence[dict]) -> list[int]:
    return front_end.tokenizer.encode(front_end.template.render(messages, add_generation_prompt=False))


def _too_short(name: str, num_tokens: int, samples: int, seqlen: int) -> str:
    fact = f"{name} has {num_tokens:,} tokens, but {samples} samples of {seqlen} need {samples * seqlen:,}"
    if num_tokens >= seqlen:
        return f"{fact}; use --calib_samples {num_tokens // seqlen}, or a longer text"
    return f"{fact}; use --calib_samples 1 --calib_seqlen {num_tokens}, or a longer text" if num_tokens >= 16 else (
        f"{fact}; give a longer text")
