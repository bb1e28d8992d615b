"""Capability: what kernels need to know of a CUDA device. Used by the kernels that choose by it."""

from __future__ import annotations

import functools

import torch


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """1 for the CPU, where Triton's interpreter runs programs one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Compute capability 9.0: wgmma, clusters, 227 KiB of shared memory a block."""
    return _capability(device) == (9, 0)


@functools.cache
def can_begin_early(device: torch.device) -> bool:
    """Whether a kernel may begin while the one in front of it drains (programmatic dependent launch)."""
    return _capability(device) >= (9, 0)


def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) for what is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None:
        return 0, 0
    return torch.cuda.get_device_capability(device)
