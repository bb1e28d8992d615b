"""Kernels for GPUs that are not here: what stands in for Hopper's own compiles for Ampere and Ada, and fits there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

KERNELS = {"_decode_kernel", "_prefill_kernel", "_rotary_and_store_kernel", "_matvec_kernel", "_rms_norm_kernel",
           "_silu_and_mul_kernel", "_w4_matmul_kernel", "_w4_dequantise_kernel", "_draw_kernel", "_penalise_kernel",
           "_mask_tokens_kernel"}
# Shared memory that a block can have: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024}


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_for_it_and_fits_its_shared_memory(capability, tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    process = subprocess.run([sys.executable, "-m", "tests.backend.kernels.compile_for", str(capability)],
                             env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    shared_bytes = json.loads(process.stdout.splitlines()[-1])
    assert shared_bytes.keys() == KERNELS
    assert max(shared_bytes.values()) <= SHARED_BYTES[capability]
