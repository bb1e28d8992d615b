from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.config import QuantConfig, RopeConfig
from backend.distributed import TensorParallel
from backend.errors import ConfigError
from backend.models.decoder import Decoder
from tests.awq_checkpoints import quantise
from tests.backend.models.hugging_face import WeightsSource, reference_model, source_of
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

RELATIVE_TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by about 1e-6
# Of logits computed in these dtypes; on the CPU 7e-4 and 5e-3 are seen.
TOLERANCES = {"float32": RELATIVE_TOLERANCE, "float16": 3e-3, "bfloat16": 2e-2}
PROMPT = torch.randint(0, 90, (41,), generator=torch.Generator().manual_seed(1)).tolist()

REFERENCES = {
    "llama": ("llama", {}, None),
    "llama with biases": ("llama", {"attention_bias": True}, None),
    "llama 3.1 rope": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}, RopeConfig(16, 500.0, "llama3", 4.0, 1.0, 4.0, 32)),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
                    RopeConfig(16, scaling_type="linear", factor=2.0)),
    "qwen2": ("qwen2", {}, None),
    "qwen3": ("qwen3", {}, None),
}


def assert_close(logits: Tensor, expected: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> None:
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


def all_logits(driver: StepDriver, prompt: list[int], chunks: list[int]) -> Tensor:
    """Logits of the last token of each chunk of a prompt."""
    rows, start = [], 0
    for index, size in enumerate(chunks):
        setups = [driver.setup(1, prompt)] if index == 0 else []
        rows.append(driver.logits([(1, start, size)], setups))
        start += size
    return torch.cat(rows)


@pytest.mark.parametrize("name", REFERENCES)
def test_prefill_and_decode_give_the_logits_of_transformers(name: str) -> None:
    family, options, rope = REFERENCES[name]
    reference = reference_model(family, **options)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]
    logits = all_logits(StepDriver(source_of(reference, rope)), PROMPT, [9] + [1] * 32)
    assert_close(logits, expected[8:])


def test_plain_prefill_attention_gives_the_logits_of_transformers() -> None:
    reference = reference_model("llama")
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0, -1:]
    driver = StepDriver(source_of(reference, use_context_fmha=False))
    assert_close(all_logits(driver, PROMPT, [len(PROMPT)]), expected)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_prompt_in_any_chunks_gives_the_logits_of_one_piece(data: st.DataObject) -> None:
    source = tiny_source()
    driver = StepDriver(source)
    whole = all_logits(driver, PROMPT, [len(PROMPT)])
    chunks = []
    while sum(chunks) < len(PROMPT):
        chunks.append(data.draw(st.integers(1, len(PROMPT) - sum(chunks))))
    assert_close(all_logits(driver, PROMPT, chunks)[-1:], whole)


def test_a_mixed_batch_gives_each_row_the_logits_it_has_alone() -> None:
    driver = StepDriver(tiny_source())
    prompts = [PROMPT[:20], PROMPT[5:], PROMPT[30:37], [7]]
    alone = [driver.logits([(0, 0, len(prompt))], [driver.setup(0, prompt)]) for prompt in prompts]
    setups = [driver.setup(row, prompt) for row, prompt in enumerate(prompts)]
    # Rows 0 and 3 decode their last token; row 1 computes a second chunk, row 2 all of its prompt.
    driver.logits([(0, 0, 19), (1, 0, 17)], setups)
    mixed = driver.logits([(3, 0, 1), (0, 19, 1), (1, 17, len(prompts[1]) - 17), (2, 0, 7)])
    assert_close(mixed, torch.cat([alone[3], alone[0], alone[1], alone[2]]))


@pytest.mark.gpu
def test_cuda_gives_the_logits_of_the_cpu() -> None:
    logits = {}
    for device in ("cpu", "cuda"):
        driver = StepDriver(tiny_source(device=device, dtype="float32", head_dim=64, qk_norm=True, attention_bias=True))
        logits[device] = all_logits(driver, PROMPT, [9, 1, 20, 1, 1, 9]).cpu()
    assert_close(logits["cuda"], logits["cpu"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_cuda_gives_the_logits_of_the_cpu_with_weights_in_4_bits(dtype: str, group_size: int) -> None:
    dense = tiny_source(head_dim=64, hidden_size=256, intermediate_size=384, attention_bias=True)
    model = replace(dense.model, quant=QuantConfig(group_size))
    logits = {}
    for device, compute in (("cpu", "float32"), ("cuda", dtype)):
        engine = replace(dense.engine, device=device, dtype=compute)
        driver = StepDriver(WeightsSource(model, engine, quantised(dict(dense.tensors()), group_size)))
        logits[device] = all_logits(driver, PROMPT, [9, 1, 20, 1, 1, 9]).cpu()
    assert_close(logits["cuda"], logits["cpu"], TOLERANCES[dtype])


def quantised(weights: dict[str, Tensor], group_size: int) -> dict[str, Tensor]:
    """Canonical weights with the linear layers' in 4 bits."""
    found = {}
    for name, tensor in weights.items():
        if name.startswith("layers.") and tensor.dim() == 2:
            parts = quantise(tensor * 0.05, group_size)  # about 1 / sqrt(inputs) over 0.3
            found |= {f"{name.removesuffix('weight')}{kind}": part for kind, part in parts.items()}
        else:
            found[name] = tensor
    return found


def test_logits_are_computed_for_sampling_rows_only() -> None:
    driver = StepDriver(tiny_source())
    plan = driver.plan([(0, 0, 5), (1, 0, 6)], [driver.setup(0, PROMPT[:5]), driver.setup(1, PROMPT)], silent=[1])
    batch, _ = driver.worker.runner.inputs.build(plan)
    assert driver.worker.runner.forward(batch).shape == (1, 96)


@pytest.mark.parametrize(("overrides", "cause"), [
    ({}, r"tp=4 does not divide num_kv_heads=2; use tp in \[1, 2\]"),
    ({"num_heads": 6}, r"tp=4 does not divide num_heads=6; use tp in \[1, 2, 3, 6\]"),
    ({"num_kv_heads": 4, "intermediate_size": 50}, r"tp=4 does not divide intermediate_size=50"),
])
def test_tp_that_does_not_divide_the_model_is_refused_with_the_divisors(overrides: dict, cause: str) -> None:
    source = tiny_source(**overrides)
    with pytest.raises(ConfigError, match=cause):
        Decoder(source.model, source.engine, TensorParallel(rank=0, size=4))
