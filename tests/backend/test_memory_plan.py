"""The memory plan: what fits is said before anything is loaded; what does not names the option that would cure it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from backend.config import EngineConfig, ModelConfig, QuantConfig, RopeConfig
from backend.errors import CapacityError
from backend.memory_plan import GIB, graph_batch_sizes, other_bytes, plan_memory, weights_bytes

LLAMA_7B = ModelConfig("llama2", 32000, 4096, 32, 32, 32, 128, 11008, 1e-5, RopeConfig(128), 4096, 1, (2,))


INT4_7B = dataclasses.replace(LLAMA_7B, dtype="float16", quant=QuantConfig(128))


def plan(free_gib: float, **options: float):
    return plan_memory(LLAMA_7B, EngineConfig(**{"session_len": 4096, **options}), "bfloat16", int(free_gib * GIB))


def test_weights_of_llama_7b_are_its_published_size():
    assert weights_bytes(LLAMA_7B, "bfloat16", 1) == 6_738_415_616 * 2


def test_kv_cache_takes_its_share_of_what_the_weights_leave():
    result = plan(80, cache_max_entry_count=0.5)
    block = 64 * 524_288  # 512 KiB a token: 2 x 32 layers x 32 heads x 128 x 2 bytes
    assert result.num_blocks == int((80 * GIB - result.weights_bytes) * 0.5) // block
    assert result.kv_bytes == result.num_blocks * block


@pytest.mark.parametrize(("quant_policy", "has_kv_scales", "token_bytes", "words"), [
    (0, False, 524_288, "in the model's dtype"), (8, False, 270_336, r"int8 \(online\)"),
    (4, False, 139_264, r"int4 \(online\)"), (4, True, 262_144, r"int8 \(calibrated\)")])
def test_a_token_of_each_kv_format_takes_its_values_and_scales(quant_policy, has_kv_scales, token_bytes, words):
    """512 KiB in bfloat16; online formats keep 8 bytes of scales for each of 32 layers' 32 heads."""
    config = EngineConfig(session_len=4096, quant_policy=quant_policy, cache_max_entry_count=100)
    result = plan_memory(LLAMA_7B, config, "bfloat16", 80 * GIB, has_kv_scales=has_kv_scales)
    assert result.kv_bytes == 100 * 64 * token_bytes
    assert re.search(rf"KV cache .* GiB: {words}, 100 blocks x 64 tokens", str(result))


def test_whole_plan_never_exceeds_what_is_free():
    result = plan(24, cache_max_entry_count=0.999, session_len=1024)
    assert result.weights_bytes + result.kv_bytes + result.other_bytes <= 24 * GIB


def test_cuda_graphs_are_captured_for_close_batch_sizes_up_to_the_largest():
    assert graph_batch_sizes(1) == [1]
    assert graph_batch_sizes(20) == [1, 2, 4, 8, 16, 20]
    sizes = graph_batch_sizes(256)
    assert len(sizes) == 35 and sizes[-1] == 256
    assert graph_batch_sizes(512)[-9:] == [256, 288, 320, 352, 384, 416, 448, 480, 512]


def test_memory_of_cuda_graphs_is_planned_where_there_are_any():
    assert plan(80).other_bytes > plan(80, cuda_graphs=False).other_bytes
    assert plan(80, tp=2).other_bytes == plan(80, tp=2, cuda_graphs=False).other_bytes


def test_plan_reads_as_a_sentence():
    assert re.fullmatch(r"weights 12\.6 GiB \(bfloat16\), KV cache .* GiB: .* blocks x 64 tokens = .* tokens "
                        r"or .* full sessions of 4,096, other .* GiB", str(plan(80)))


def test_int4_weights_are_4_bits_each_and_a_word_for_each_group():
    linear, other = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008), 2 * 32000 * 4096 + 65 * 4096
    assert weights_bytes(INT4_7B, "float16", 1) == linear // 2 + linear // 128 * 4 + other * 2
    in_groups_of_32 = dataclasses.replace(INT4_7B, quant=QuantConfig(32))
    assert weights_bytes(in_groups_of_32, "float16", 1) == linear // 2 + linear // 32 * 4 + other * 2


def test_a_plan_of_int4_weights_says_so():
    int4 = plan_memory(INT4_7B, EngineConfig(4096), "float16", 24 * GIB)
    assert str(int4).startswith("weights 3.7 GiB (int4, groups of 128, float16 activations), KV cache ")


def test_the_named_tp_is_the_first_with_which_weights_fit_and_divides_their_groups():
    odd = dataclasses.replace(INT4_7B, intermediate_size=129 * 128)
    for model, gib, cure in ((LLAMA_7B, 12, "tp=2 or "), (LLAMA_7B, 6, "tp=4 or "), (LLAMA_7B, 1, ""),
                             (INT4_7B, 4, "tp=2 or "), (odd, 5, "")):  # of 0, 86 and 129 groups
        with pytest.raises(CapacityError, match=f"use {cure}a device"):
            plan_memory(model, EngineConfig(4096), "float16", gib * GIB)


def test_what_int4_weights_are_unpacked_into_is_planned():
    def other(model: ModelConfig, on_cpu: bool) -> int:
        return other_bytes(model, EngineConfig(4096), "float16", on_cpu)

    assert other(INT4_7B, on_cpu=False) - other(LLAMA_7B, on_cpu=False) == 64 * 2**20
    assert other(INT4_7B, on_cpu=True) - other(LLAMA_7B, on_cpu=True) == 2 * 11008 * 4096 * 10


def test_tp_divides_weights_and_kv():
    assert plan(80, tp=2).weights_bytes < plan(80).weights_bytes * 0.51
    assert plan(80, tp=2, cache_max_entry_count=100).kv_bytes * 2 == plan(80, cache_max_entry_count=100).kv_bytes


@pytest.mark.parametrize(("free_gib", "options", "cure"), [
    (12, {}, {"tp": 2}),
    (16, {}, None),
    (24, {"session_len": 32768}, None),
    (24, {"cache_max_entry_count": 5000}, None),
])
def test_where_it_does_not_fit_the_named_value_does(free_gib, options, cure):
    with pytest.raises(CapacityError) as error:
        plan(free_gib, **options)
    if cure is None:
        name, value = re.search(r"use (\w+)=([\d.]+\d)", str(error.value)).groups()
        cure = {name: float(value) if "." in value else int(value)}
    assert plan(free_gib, **{**options, **cure}).num_blocks > 0
