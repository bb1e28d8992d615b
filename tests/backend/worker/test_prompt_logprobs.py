from __future__ import annotations

import dataclasses

import pytest
import torch

from backend.worker import prompt_logprobs
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

PROMPT = list(range(20, 57))
OTHER = [5, 9, 11, 3, 8]
ATOL = 1e-5  # float32, another order of summation


@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
@pytest.mark.parametrize("chunks", [[37], [1, 36], [20, 1, 16], [12, 12, 13]])
def test_a_prompt_s_logprobs_are_the_logits_softmax_however_it_is_cut(chunks, slice_rows, monkeypatch):
    driver = StepDriver(tiny_source())
    vocab_size = driver.worker.model_config.vocab_size
    monkeypatch.setattr(prompt_logprobs, "LOGITS_BYTES", 4 * vocab_size * slice_rows)
    setups = [dataclasses.replace(driver.setup(0, PROMPT), prompt_logprobs=3), driver.setup(1, OTHER)]
    expected = torch.stack([driver.logits([(2, 0, end)], [driver.setup(2, PROMPT[:end])])[0]
                            for end in range(1, len(PROMPT))]).log_softmax(-1)
    found, first = [], 0
    for number, size in enumerate(chunks):
        rows = sorted([(0, first, size), *([(1, 0, 5)] if number == 0 else [])], key=lambda row: row[2] > 1)
        result = driver.worker.run(driver.plan(rows, setups if number == 0 else (),
                                               silent=[0] if first + size < len(PROMPT) else [])).wait()
        for prompt in result.prompts:
            assert (prompt.row, prompt.first) == (0, len(found) + 1)
            found += prompt.logprobs
        assert len(result.tokens) == (number == 0) + (first + size == len(PROMPT))
        first += size
    assert [one.token_id for one in found] == PROMPT[1:]
    for position, one in enumerate(found):
        assert one.logprob == pytest.approx(expected[position, one.token_id].item(), abs=ATOL)
        top = expected[position].topk(3)
        assert [token_id for token_id, _ in one.top] == top.indices.tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(top.values.tolist(), abs=ATOL)
    assert driver.run([(0, len(PROMPT), 1)])[0].logprobs is None  # the prompt is behind it
