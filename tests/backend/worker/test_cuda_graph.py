from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.requests import SamplingParams
from backend.steps import ScheduledRow, StepPlan
from converter.tokenizer import prepare_tokenizer
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

MAX_BATCH_SIZE = 20  # graphs of 1, 2, 4, 8, 16 and 20 rows
LOGITS_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}  # matmuls of another size round otherwise; logits reach 30
NUM_NEW = 8

pytestmark = pytest.mark.gpu


def make_driver(dtype: str = "float32", **options: object) -> StepDriver:
    source = tiny_source(device="cuda", head_dim=64, max_batch_size=MAX_BATCH_SIZE, max_prefill_tokens=2048,
                         cache_max_entry_count=16 * MAX_BATCH_SIZE, dtype=dtype, **options)
    return StepDriver(replace(source, tokenizer_dir=tokenizer_dir()))


@functools.cache
def tokenizer_dir() -> Path:
    """The demo model's, whose first tokens are single bytes."""
    folder = Path(tempfile.mkdtemp(prefix="millrace-"))
    prepare_tokenizer(Path(__file__).parents[3] / "demo/checkpoint", folder, None)
    return folder


def prompt(row: int) -> list[int]:
    return [3 + (7 * row + 5 * place) % 90 for place in range(1 + 11 * row)]


def prefill(driver: StepDriver, rows: range, *requests: SamplingParams) -> None:
    """Rows begin, each with one of the requests in turn."""
    setups = [driver.setup(row, prompt(row), requests[row % len(requests)], seed=row) for row in rows]
    driver.run([(row, 0, len(prompt(row))) for row in sorted(rows, key=lambda row: len(prompt(row)) > 1)], setups)


@pytest.mark.parametrize(("dtype", "quant_policy"), [("float32", 0), ("bfloat16", 0), ("bfloat16", 8)])
@pytest.mark.parametrize("num_rows", [1, 3, 8, 9, 20])
def test_a_graph_gives_the_logits_of_the_launched_step(num_rows: int, dtype: str, quant_policy: int) -> None:
    driver = make_driver(dtype, quant_policy=quant_policy)
    runner = driver.worker.runner
    prefill(driver, range(num_rows), SamplingParams(temperature=0.0))
    inputs = runner.inputs.arrange(driver.plan([(row, len(prompt(row)), 1) for row in range(num_rows)]))
    assert runner.graphs.fits(inputs)
    with torch.inference_mode():
        expected = runner.model(runner.inputs.upload(inputs)[0])
        logits, token_ids = runner.graphs.replay(inputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_TOLERANCE[dtype])
    assert torch.equal(token_ids, logits.argmax(-1))
    assert torch.equal(driver.worker.tables.token_ids.view(-1)[inputs.sampling.slots].long(), token_ids)


GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=1.2, top_k=30, top_p=0.9, min_p=0.01)
PENALISED = SamplingParams(temperature=0.9, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2)
WITH_LOGPROBS = SamplingParams(temperature=1.2, top_p=0.9, repetition_penalty=1.2, logprobs=2)
CONSTRAINED = SamplingParams(temperature=1.5, grammar="start: /[A-Z]+/")
BIASED = SamplingParams(temperature=0.0, logit_bias=((7, 4.0),), presence_penalty=1.0)


@pytest.mark.parametrize("requests", [[GREEDY], [DRAWN], [PENALISED], [GREEDY, DRAWN, PENALISED],
                                      [DRAWN, WITH_LOGPROBS, PENALISED, BIASED], [DRAWN, CONSTRAINED, PENALISED]])
def test_graphs_give_the_tokens_of_launched_steps_while_rows_come_and_go(requests: list[SamplingParams]) -> None:
    """Other requests in each row; what a graph does not do is sampled after it."""
    found = []
    for cuda_graphs in (True, False):
        driver = make_driver(cuda_graphs=cuda_graphs)
        assert (driver.worker.runner.graphs is not None) is cuda_graphs
        prefill(driver, range(12), *requests)
        found.append([])
        for count in range(NUM_NEW):
            rows = range(count % 3, 12 - count)  # batches of other sizes, so of other padding, at every step
            rows = [row for row in rows if count < NUM_NEW // 2 or row % 2]
            lengths = {row: len(prompt(row)) + count for row in rows}
            tokens = driver.run([(row, lengths[row], 1) for row in rows])
            found[-1].append([(token.token_id, token.logprobs is None) for token in tokens])
    assert found[0] == found[1]


def test_a_block_that_a_replayed_step_brings_is_read() -> None:
    driver = make_driver()
    alone = driver.generate(0, prompt(3), 20)
    block_size = driver.worker.runner.inputs.block_size
    setup = driver.setup(0, prompt(3))
    num_cached = len(prompt(3))
    held = replace(setup, block_table=setup.block_table[: -(-num_cached // block_size)])
    found = [driver.run([(0, 0, num_cached)], [held])[0].token_id]
    while len(found) < len(alone):
        place, offset = divmod(num_cached, block_size)
        row = ScheduledRow(0, num_cached, 1, () if offset else setup.block_table[place : place + 1], True)
        found.append(driver.worker.run(StepPlan(num_cached, (), (row,))).wait().tokens[0].token_id)
        num_cached += 1
    assert found == alone


def test_padding_leaves_other_sequences_as_they_are() -> None:
    driver = make_driver()
    alone = driver.generate(0, prompt(5), NUM_NEW)
    prefill(driver, range(3), SamplingParams(temperature=0.0))
    kv_cache, tables = driver.worker.runner.inputs.kv_cache, driver.worker.tables
    caches = [cache for layer in kv_cache for cache in (layer.k, layer.v)]
    before = [cache[:-1].clone() for cache in caches]
    ids = tables.token_ids[:-1].clone()
    driver.run([(row, len(prompt(row)), 1) for row in range(3)])  # in the graph of 4 rows
    changed = sum(int((cache[:-1] != old).any(-1).any(1).sum()) for cache, old in zip(caches, before, strict=True))
    assert changed == 2 * 3 * len(kv_cache)  # the key and value of each row's token
    assert (tables.token_ids[:-1] != ids).sum() <= 3
    assert driver.generate(0, prompt(5), NUM_NEW) == alone


def test_a_step_with_a_prompt_or_a_row_that_begins_is_launched() -> None:
    driver = make_driver()
    runner = driver.worker.runner
    setups = [driver.setup(0, [5]), driver.setup(1, [5, 6])]
    assert not runner.graphs.fits(runner.inputs.arrange(driver.plan([(0, 0, 1)], setups[:1])))
    assert not runner.graphs.fits(runner.inputs.arrange(driver.plan([(0, 1, 1), (1, 0, 2)], setups[1:])))
    assert not runner.graphs.fits(runner.inputs.arrange(driver.plan([(0, 1, 1)], silent=[0])))
