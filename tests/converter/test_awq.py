"""AWQ folders are read as what their words stand for: converted or not, by one rank or two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend import LLM, SamplingParams
from backend.config import QuantConfig
from backend.model_source import ModelSource, open_model
from backend.workspace import Workspace
from converter.canonical import canonicalise
from converter.checkpoint import open_hf
from converter.convert import convert_checkpoint
from tests.awq_checkpoints import dequantise, make_awq_pair, rewrite_tensors
from tests.backend.models.hugging_face import WeightsSource
from tests.backend.step_driver import StepDriver
from tests.checkpoints import FAMILIES

RELATIVE_TOLERANCE = 1e-5  # of the largest logit; the weights are the same, sums in another order are not
KINDS = ("qweight", "qzeros", "scales")
PROMPT = torch.randint(5, 261, (41,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def values(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Canonical tensors in float32, those of a quantised weight as the weight they stand for."""
    found = {name: tensor[:].float() for name, tensor in tensors.items() if not name.endswith(KINDS)}
    for layer in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        found[f"{layer}.weight"] = dequantise(*(tensors[f"{layer}.{kind}"][:] for kind in KINDS))
    return found


def logits(source: ModelSource) -> Tensor:
    engine = source.engine.with_options({"max_batch_size": 1, "session_len": 64, "block_size": 16, "device": "cpu"})
    driver = StepDriver(WeightsSource(source.model, engine, dict(source.tensors())))
    rows = [driver.logits([(0, 0, 20)], [driver.setup(0, PROMPT)])]
    rows += [driver.logits([(0, 20 + step, 1)]) for step in range(10)]
    return torch.cat(rows)


def assert_close(found: Tensor, expected: Tensor) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < RELATIVE_TOLERANCE, f"relative error {error:.2e}"


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_words_stand_for_the_fused_weights(family, group_size, tmp_path):
    awq, dense = make_awq_pair(family, tmp_path, group_size)
    found, expected = canonicalise(open_hf(awq), family), canonicalise(open_hf(dense), family)
    assert found.model.quant == QuantConfig(group_size) and expected.model.quant is None
    assert found.model.dtype == "float16"
    wanted, got = values(expected.tensors), values(found.tensors)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize(("family", "group_size"), [("llama", 128), ("internlm2", 64), ("qwen2", 32)])
def test_folder_and_workspace_give_the_logits_of_the_dequantised_model(family, group_size, tmp_path):
    awq, dense = make_awq_pair(family, tmp_path, group_size)
    expected = logits(open_model(dense, "llama"))
    assert_close(logits(open_model(awq, "llama", "awq")), expected)
    convert_checkpoint("llama", awq, "awq", tmp_path / "workspace", group_size=group_size)
    assert_close(logits(open_model(tmp_path / "workspace")), expected)


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_two_ranks_give_the_tokens_and_logprobs_of_the_dequantised_model(family, tmp_path):
    awq, dense = make_awq_pair(family, tmp_path, 64)
    sampling = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True, logprobs=20)
    found = []
    for folder, tp in ((dense, 1), (awq, 2)):
        with LLM(folder, "llama", tp=tp, device="cpu", session_len=64, max_batch_size=1) as llm:
            found.append(llm.generate(PROMPT, sampling))
    assert found[0].token_ids == found[1].token_ids
    for expected, got in zip(found[0].logprobs, found[1].logprobs, strict=True):
        assert dict(got.top) == pytest.approx(dict(expected.top), abs=1e-4)


def test_an_awq_folder_is_recognised_by_itself(pristine_awq, tmp_path):
    conversion = convert_checkpoint("llama", pristine_awq[0], dst_path=tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    assert workspace.model == conversion.model and workspace.model.quant == QuantConfig(64)
    assert open_model(pristine_awq[0], "llama").model == workspace.model
    config = (workspace.weights_dir / "config.ini").read_text()
    assert 'weight_type = "int4"\nactivation_type = "fp16"\ngroup_size = 64\n' in config


def test_what_was_written_is_what_was_read(pristine_awq, tmp_path):
    convert_checkpoint("llama", pristine_awq[0], dst_path=tmp_path / "workspace")
    written = dict(Workspace(tmp_path / "workspace").tensors())
    expected = canonicalise(open_hf(pristine_awq[0]), "llama").tensors
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name][:], tensor[:]) for name, tensor in expected.items())
    assert written["layers.0.attention.w_qkv.qweight"].shape == (256, 512 // 8)


def test_everything_else_takes_the_dtype_that_was_asked_for(pristine_awq):
    canonical = canonicalise(open_hf(pristine_awq[0]), "llama", "bfloat16")
    assert canonical.model.dtype == "bfloat16"
    dtypes = {name.rpartition(".")[2]: tensor.dtype for name, tensor in canonical.tensors.items()}
    assert dtypes == {"weight": torch.bfloat16, "qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16}


def test_scales_of_another_dtype_are_cast(awq):
    rewrite_tensors(awq, lambda tensors: tensors.update(
        {name: tensor.bfloat16() for name, tensor in tensors.items() if name.endswith("scales")}))
    scales = canonicalise(open_hf(awq), "llama").tensors["layers.0.attention.wo.scales"]
    assert scales[:].dtype == torch.float16
