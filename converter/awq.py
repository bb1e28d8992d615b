"""AWQ: a Hugging Face checkpoint becomes one of four-bit weights, one layer at a time.

Each layer is run as it is on the calibration text; from what its linear layers are given follow the scales
(awq_layer.py), and its outputs are the next layer's inputs. (Inputs from layers that are quantised already were no
better on the demo model, and an interrupted run would need them back.) Used by auto_awq.py, and from Python."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from backend.accuracy_report import store_report
from backend.config import DTYPES, ModelConfig, QuantConfig
from backend.errors import CapacityError, CheckpointError
from converter.accuracy import measure_accuracy
from converter.awq_checkpoint import AwqCheckpoint
from converter.awq_layer import LINEARS, Recipe, observe, quantise_layer
from converter.awq_layout import SourceNames, published_layer
from converter.calibration_windows import Calibration
from converter.canonical import CanonicalModel, family_of
from converter.checkpoint import Checkpoint, open_hf
from converter.layerwise import LayerwiseModel
from converter.source import HuggingFaceSource, open_checkpoint

logger = logging.getLogger(__name__)
FORMAT = 1  # of what a partial run leaves; another Millrace's is not gone on with
