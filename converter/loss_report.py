"""Loss report: the last thing that auto_awq and kv_qparams do is to measure what they have cost, and to store it.

How it is measured is accuracy.py's matter. Used by quantise_checkpoint.py and kv_calibration.py."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tqdm import tqdm

from backend.accuracy_report import store_report
from backend.config import EngineConfig
from backend.model_source import ModelSource
from converter.accuracy import EvaluationText, measure_accuracy

logger = logging.getLogger(__name__)


def report_loss(base: ModelSource, quantised: ModelSource, engine: EngineConfig, text: EvaluationText, folder: Path, *,
                show_progress: bool) -> None:
    """Measures `quantised` as the engine runs it, stores the report in the folder of its weights, and logs it.

    Where the output head does not fit the device, which quantising layer by layer did not need, says that instead."""
    try:
        with tqdm(total=2 * text.num_tokens, unit=" tokens", desc="measuring the loss",
                  disable=None if show_progress else True) as bar:  # None: only on a terminal
            report = measure_accuracy(base, quantised, engine, text, bar.update)
    except torch.OutOfMemoryError as error:
        logger.warning("the loss was not measured: %s", str(error).partition("\n")[0])
        return
    store_report(folder, report)
    logger.info("%s", report.short())
