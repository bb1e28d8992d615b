"""Programmatic dependent launch: a kernel begins while the one in front drains, and waits before it reads results.

On Hopper and later. A kernel calls `wait_for_inputs` after loading what no kernel of the step writes (weights, old KV)
and before anything else. Every kernel that is launched with these options must call it, or the kernels behind it could
overtake the one in front of it. Used by the Triton kernels of a decode step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from backend.kernels import capability


def launch_options(device: torch.device) -> dict[str, bool]:
    """Keyword arguments for the launch of a kernel with a USE_PDL parameter."""
    return {"USE_PDL": True, "launch_pdl": True} if capability.can_begin_early(device) else {"USE_PDL": False}


@triton.jit
def wait_for_inputs(USE_PDL: tl.constexpr):
    """Lets the next kernel begin, then waits until the one in front has ended and its results can be read."""
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
