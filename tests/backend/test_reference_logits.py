"""Every family computes what its reference computes: prefill and 32 decode steps, through convert → workspace → engine
and straight from the checkpoint folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.config import EngineConfig
from backend.engine.engine import Engine, start_engine
from backend.model_source import ModelSource
from backend.requests import GenerateRequest, SamplingParams
from backend.workspace import Workspace
from converter.convert import convert_checkpoint
from converter.source import open_checkpoint
from tests.checkpoints import FAMILIES, make_checkpoint

RELATIVE_ERROR = 1e-4  # float32 on both sides, different order of sums
# In half precision the reference's own error on the same input is the measure; twice it, because sums of ours may round
# in another order than the reference's.
OF_THE_REFERENCES_ERROR = 2.0
NUM_NEW = 32
PROMPT = tuple(range(5, 75))  # longer than a block


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
               ) -> tuple[str, Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    return request.param, folder, make_checkpoint(request.param, folder)


def logits_of(source: ModelSource, **options: int | str) -> tuple[list[int], Tensor]:
    """Greedy tokens after PROMPT, and the logits [NUM_NEW, V] from which each was chosen."""
    config = EngineConfig(session_len=256, max_batch_size=4, cache_max_entry_count=8, dtype="float32"
                          ).with_options(options)
    engine = start_engine(source, config)
    logits: list[Tensor] = []
    watch_logits(engine, logits)
    engine.add_request(GenerateRequest("a", PROMPT, SamplingParams(temperature=0, max_new_tokens=NUM_NEW,
                                                                   ignore_eos=True)))
    tokens = [token_id for _ in range(10 * NUM_NEW) if engine.has_work
              for output in engine.step() for token_id in output.token_ids]
    engine.close()
    return tokens, torch.cat(logits)


def watch_logits(engine: Engine, into: list[Tensor]) -> None:
    """Of steps that run kernel by kernel, and of those that are replayed as a CUDA graph."""
    runner = engine.executor.worker.runner
    runner.model.register_forward_hook(lambda module, inputs, output: into.append(output.cpu()))
    if runner.graphs is None:
        return
    replay = runner.graphs.replay

    def watched_replay(inputs: object) -> tuple[Tensor, Tensor]:
        logits, token_ids = replay(inputs)
        into.append(logits.cpu())
        return logits, token_ids

    runner.graphs.replay = watched_replay


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """The reference's logits, in one pass over prompt and tokens."""
    ids = torch.tensor([[*PROMPT, *tokens[:-1]]], device=model.device)
    return model(ids).logits[0, len(PROMPT) - 1:].float().cpu()


def worst_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert worst_error(ours, theirs) < RELATIVE_ERROR


def test_converted_checkpoint_gives_the_reference_logits(checkpoint, tmp_path):
    family, folder, model = checkpoint
    convert_checkpoint(family, folder, dst_path=tmp_path / "workspace")
    tokens, logits = logits_of(Workspace(tmp_path / "workspace"))
    assert_close(logits, reference_logits(model, tokens))


def test_checkpoint_folder_gives_the_reference_logits_in_chunks(checkpoint):
    family, folder, model = checkpoint
    tokens, logits = logits_of(open_checkpoint(folder, family), max_prefill_tokens=17)
    assert_close(logits, reference_logits(model, tokens))


@pytest.mark.parametrize("head_dim", [80, 96, 128, 256])
def test_other_head_dims_give_the_reference_logits(head_dim, tmp_path):
    model = make_checkpoint("internlm2", tmp_path, head_dim=head_dim)
    tokens, logits = logits_of(open_checkpoint(tmp_path, "internlm2"))
    assert_close(logits, reference_logits(model, tokens))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_close_as_the_reference_is_in_it(checkpoint, dtype):
    family, folder, model = checkpoint
    tokens, logits = logits_of(open_checkpoint(folder, family), dtype=dtype)
    exact = reference_logits(model, tokens)
    half = copy.deepcopy(model).to("cuda", getattr(torch, dtype))
    assert worst_error(logits, exact) < OF_THE_REFERENCES_ERROR * worst_error(reference_logits(half, tokens), exact)
