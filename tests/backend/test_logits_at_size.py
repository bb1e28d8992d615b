"""At the size of a 7B model, on a GPU: logits are no further from float32's than transformers' in the same dtype are,
with dense weights and with those of 4 bits, of which transformers is given what they stand for.

Random weights of benchmarks.shapes, so nothing is downloaded; about 60 GiB of GPU memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from backend.config import EngineConfig, ModelConfig
from benchmarks.checkpoint import hugging_face_parts
from benchmarks.prompts import random_prompt
from benchmarks.shapes import SHAPES, WEIGHTS, RandomModel, with_weights
from tests.awq_checkpoints import dequantise
from tests.backend.step_driver import StepDriver

BATCH_SIZES = [1, 2, 16, 40]
SESSION_LEN = 1024
MEMORY_BYTES = 80e9

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def engine_config(batch_size: int) -> EngineConfig:
    return EngineConfig(session_len=SESSION_LEN, max_batch_size=batch_size, max_prefill_tokens=32768,
                        cache_max_entry_count=batch_size * SESSION_LEN // 64)


def dense_tensors(model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """RandomModel's weights, quantised ones as what they stand for."""
    quantised: dict[str, Tensor] = {}
    for name, stored in RandomModel(model, engine_config(1)).tensors():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":
            yield name, stored[:]
            continue
        quantised[kind] = stored[:]
        if len(quantised) == 3:
            yield f"{layer}.weight", dequantise(**quantised)
            quantised = {}


def reference(model: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """transformers' Llama with the weights of RandomModel."""
    config = LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.hidden_size, intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads, head_dim=model.head_dim, rms_norm_eps=model.norm_eps,
        max_position_embeddings=model.max_position_embeddings, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope.theta})
    with torch.device("cuda"):
        theirs = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    state = theirs.state_dict()
    for name, tensor in dense_tensors(model):
        for place, part in hugging_face_parts(model, name, tensor).items():
            state.pop(place).copy_(part)
    assert not state, f"never filled: {sorted(state)[:3]}"
    return theirs


@torch.inference_mode()
def last_logits(model: PreTrainedModel, contexts: list[list[int]]) -> Tensor:
    """Logits [R, V] after each context."""
    return torch.cat([model(torch.tensor([ids], device="cuda"), logits_to_keep=1).logits[:, -1].float().cpu()
                      for ids in contexts])


def free_memory() -> None:
    """What was deleted is the device's again: graphs and workers know each other, and torch keeps what it has had."""
    gc.collect()
    torch.cuda.empty_cache()


def mean_error(logits: Tensor, exact: Tensor) -> float:
    return float(((logits - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < MEMORY_BYTES, reason="80 GB of memory")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", ["m7", "g8"])
def test_logits_are_as_close_to_float32_as_those_of_transformers(shape: str, weights: str) -> None:
    model = with_weights(SHAPES[shape], weights)
    prompts = [random_prompt(row, 200 + 17 * row, model.vocab_size) for row in range(max(BATCH_SIZES))]
    ours: dict[str, Tensor] = {}
    contexts: dict[str, list[list[int]]] = {}
    for batch_size in BATCH_SIZES:
        free_memory()
        driver = StepDriver(RandomModel(model, engine_config(batch_size)))
        runner = driver.worker.runner
        rows = range(batch_size)
        setups = [driver.setup(row, prompts[row]) for row in rows]
        if batch_size == max(BATCH_SIZES):
            ours["prefill"] = driver.logits([(row, 0, len(prompts[row])) for row in rows], setups).cpu()
            contexts["prefill"] = [list(prompts[row]) for row in rows]
        first = driver.run([(row, 0, len(prompts[row])) for row in rows], setups)
        inputs = runner.inputs.arrange(driver.plan([(row, len(prompts[row]), 1) for row in rows]))
        assert runner.graphs.fits(inputs)
        with torch.inference_mode():
            ours[f"decode {batch_size}"] = runner.graphs.replay(inputs)[0].cpu()
        contexts[f"decode {batch_size}"] = [[*prompts[token.row], token.token_id] for token in first]
        del driver, runner
    free_memory()
    exact_model = reference(model, torch.float32)
    exact = {name: last_logits(exact_model, ids) for name, ids in contexts.items()}
    del exact_model
    free_memory()
    half_model = reference(model, getattr(torch, model.dtype))
    for name, ids in contexts.items():
        error, allowed = mean_error(ours[name], exact[name]), mean_error(last_logits(half_model, ids), exact[name])
        print(f"{model.model_name} {name}: ours {error:.4f}, transformers {allowed:.4f}")
        assert error <= allowed, f"{name}: {error:.4f} from float32, transformers' {model.dtype} {allowed:.4f}"
