"""What tests of several benchmarks share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def on_cpu(monkeypatch):
    """Engines choose the CPU even where there is a GPU: benchmarks take nearly all of a GPU's memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
