from __future__ import annotations

import dataclasses

import psutil
import pytest
import torch

from backend.worker.kv_cache import allocate_kv_cache
from tests.backend.tiny_model import tiny_source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cache_on_the_cpu_is_zeros_that_take_no_memory_until_they_are_written(dtype):
    tiny = tiny_source()
    model = dataclasses.replace(tiny.model, num_layers=2)
    block_bytes = tiny.engine.block_size * model.num_kv_heads * model.head_dim * dtype.itemsize
    num_blocks = 2**28 // block_bytes  # 4 tensors of 256 MiB
    before = psutil.Process().memory_info().rss
    cache = allocate_kv_cache(model, tiny.engine, num_blocks, dtype, torch.device("cpu"))
    assert psutil.Process().memory_info().rss - before < 2**26
    for tensor in (tensor for layer in cache for tensor in layer):
        assert (tensor.dtype, tensor.shape[0]) == (dtype, num_blocks + 1)
        assert not tensor[-1].any()
        tensor[-1] = 1.5
        assert (tensor[-1] == 1.5).all() and not tensor[0].any()
