from __future__ import annotations

import dataclasses

import psutil
import pytest
import torch

from backend.kv_format import KvFormat
from backend.memory_plan import kv_block_bytes
from backend.worker.kv_cache import allocate_kv_cache
from tests.backend.tiny_model import tiny_source

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quant_policy", [0, 4])
def test_a_cache_on_the_cpu_is_zeros_that_take_no_memory_until_they_are_written(dtype, quant_policy):
    tiny = tiny_source(quant_policy=quant_policy)
    model = dataclasses.replace(tiny.model, num_layers=2)
    num_blocks = 2**30 // (tiny.engine.block_size * model.num_kv_heads * model.head_dim)
    before = psutil.Process().memory_info().rss
    cache = allocate_kv_cache(model, tiny.engine, num_blocks, dtype, CPU, None)
    assert psutil.Process().memory_info().rss - before < 2**26
    stored = torch.uint8 if quant_policy else dtype
    for tensor in (tensor for layer in cache for tensor in (layer.k, layer.v)):
        assert (tensor.dtype, tensor.shape[0]) == (stored, num_blocks + 1)
        assert not tensor[-1].any()
        tensor[-1] = 2
        assert (tensor[-1] == 2).all() and not tensor[0].any()


@pytest.mark.parametrize(("quant_policy", "kv_scale", "expected"), [
    (0, None, KvFormat.AS_MODEL), (8, None, KvFormat.INT8), (4, None, KvFormat.INT4),
    (4, torch.ones(2, 2, 2, 2), KvFormat.CALIBRATED_INT8)])
def test_a_block_takes_the_bytes_that_the_plan_says(quant_policy, kv_scale, expected):
    tiny = tiny_source(quant_policy=quant_policy)
    layers = allocate_kv_cache(tiny.model, tiny.engine, 3, torch.float16, CPU, kv_scale)
    paged = [tensor for layer in layers for tensor in (layer.k, layer.v, layer.scales)
             if tensor is not None and len(tensor) == 4]
    assert all(layer.format is expected and layer.head_dim == tiny.model.head_dim for layer in layers)
    assert sum(tensor[0].nbytes for tensor in paged) == kv_block_bytes(tiny.model, tiny.engine, "float16", expected)
