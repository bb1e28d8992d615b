"""Calibration windows: documents as token windows of one length, drawn at random.

The documents' tokens form one stream, each document begun as the model's own tokenizer begins a text; it is cut into
windows from a random place on, of which as many as are asked for are drawn. Others serve to measure what was lost.
Used by quantise_checkpoint.py and kv_calibration.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.errors import ConfigError, TemplateError
from backend.model_source import ModelSource
from backend.text.front_end import TextFrontEnd
from converter.accuracy import EvaluationText
from converter.calibration_options import SHORTEST_SEQLEN
from converter.calibration_text import CalibrationText, contents, read_calibration_text

logger = logging.getLogger(__name__)
SEED = 0
EVALUATION_TOKENS = 16_384
_SPARE = 4  # documents are tokenised until there is text for so many times the windows that are drawn


@dataclass(frozen=True, slots=True)
class Calibration:
    """What to observe a model on.

    dataset   a file, a name of converter.dataset_cache, or None: the built-in text
    samples   windows;  seqlen  tokens of each"""

    dataset: str | None = None
    samples: int = 128
    seqlen: int = 2048

    def check_length(self, source: ModelSource) -> None:
        """Raises ConfigError for windows that are longer than the model knows."""
        limit = source.model.max_position_embeddings
        if self.seqlen > limit:
            raise ConfigError(f"windows of {self.seqlen} tokens exceed the {limit} positions that "
                              f"{source.model.model_name} knows; use --calib_seqlen {limit}")

    def draw(self, source: ModelSource) -> CalibrationWindows:
        """Of the built-in text as many windows, and as long, as it has.

        Raises ConfigError for a text that cannot be read, or is too short, with what would work."""
        enough = _SPARE * self.samples * self.seqlen
        text = read_calibration_text(self.dataset, enough, SEED)
        stream = _tokens(text, TextFrontEnd(source), enough)
        samples, seqlen = self.samples, self.seqlen
        if text.is_built_in:
            samples, seqlen = _fitting(len(stream), samples, seqlen)
            if (samples, seqlen) != (self.samples, self.seqlen):
                logger.warning("%s has %s tokens: %s windows of %s tokens are taken; a text of your own, like what the "
                               "model will read, calibrates better (--calib_dataset)", text.name,
                               f"{len(stream):,}", samples, seqlen)
        elif len(stream) < samples * seqlen:
            raise ConfigError(_too_short(text.name, len(stream), samples, seqlen))
        chance = random.Random(SEED)
        start = chance.randrange(len(stream) % seqlen + 1)
        windows = torch.tensor(stream[start : start + len(stream) // seqlen * seqlen]).view(-1, seqlen)
        order = chance.sample(range(len(windows)), len(windows))
        drawn, left = windows[sorted(order[:samples])], windows[sorted(order[samples:])]
        return CalibrationWindows(text.name, drawn, left)


@dataclass(frozen=True, slots=True)
class CalibrationWindows:
    """drawn, left  [samples, seqlen] int64: those to calibrate on, and others of the text, if there are"""

    name: str
    drawn: Tensor
    left: Tensor

    def evaluation_text(self) -> EvaluationText:
        """Up to EVALUATION_TOKENS to measure the loss on, of what the model was not calibrated on if possible."""
        count = max(1, EVALUATION_TOKENS // self.drawn.shape[1])
        windows = (self.left if len(self.left) else self.drawn)[:count]
        name = f"{self.name}, {'other' if len(self.left) else 'the same'} windows"
        return EvaluationText(name, tuple(tuple(window) for window in windows.tolist()))


def _fitting(num_tokens: int, samples: int, seqlen: int) -> tuple[int, int]:
    """(samples, seqlen) that leave a quarter of a short text, a window at least, for measuring."""
    seqlen = min(seqlen, num_tokens // 2)
    windows = num_tokens // seqlen
    return min(samples, windows - max(1, windows // 4)), seqlen


def _tokens(text: CalibrationText, front_end: TextFrontEnd, enough: int) -> list[int]:
    stream: list[int] = []
    for document in text.documents:
        try:
            stream += (front_end.prompt_ids(document) if isinstance(document, str)
                       else _conversation(front_end, document))
        except TemplateError as error:
            raise ConfigError(f"{text.name} has a conversation that the model's chat template refuses: {error}; "
                              "correct it, or give plain text") from None
        if len(stream) >= enough:
            break
    return stream


def _conversation(front_end: TextFrontEnd, messages: Sequence[dict]) -> list[int]:
    """As the model's chat template writes it; without one, as plain text."""
    try:
        template = front_end.template
    except TemplateError:
        return front_end.prompt_ids(contents(messages))
    return front_end.tokenizer.encode(template.render(messages, add_generation_prompt=False))


def _too_short(name: str, num_tokens: int, samples: int, seqlen: int) -> str:
    fact = f"{name} has {num_tokens:,} tokens, but {samples} samples of {seqlen} need {samples * seqlen:,}"
    if num_tokens < SHORTEST_SEQLEN:
        return f"{fact}; give a longer text"
    fitting = (f"--calib_samples {num_tokens // seqlen}" if num_tokens >= seqlen
               else f"--calib_samples 1 --calib_seqlen {num_tokens}")
    return f"{fact}; use {fitting}, or a longer text"
