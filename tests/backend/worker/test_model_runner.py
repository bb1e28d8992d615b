from __future__ import annotations

import random

import pytest

from backend.requests import SamplingParams
from tests.backend.step_driver import StepDriver
from tests.backend.tiny_model import tiny_source

PROMPTS = [[5, 9, 11, 3, 8], list(range(20, 57)), [90], [4] * 16]
REQUESTS = [SamplingParams(temperature=0.0), SamplingParams(temperature=1.5, top_p=0.9),
            SamplingParams(temperature=1.0, top_k=12, repetition_penalty=1.3, logprobs=1),
            SamplingParams(temperature=2.0, presence_penalty=0.5, frequency_penalty=0.5, bad_words=((4, 4),))]
NUM_NEW = 12
DRIVER = StepDriver(tiny_source())
ALONE = [DRIVER.generate(0, prompt, NUM_NEW, request, seed)
         for seed, (prompt, request) in enumerate(zip(PROMPTS, REQUESTS, strict=True))]


@pytest.mark.parametrize("schedule", range(12))
def test_tokens_are_the_same_in_any_schedule(schedule: int) -> None:
    """Four sequences whose chunks, pauses and restarts (a preempted row begins again with what it has) are drawn."""
    chance = random.Random(schedule)
    cached = [0] * 4
    found: list[list[int]] = [[] for _ in range(4)]
    is_set = [False] * 4
    while any(len(tokens) < NUM_NEW for tokens in found):
        setups, rows = [], []
        for row in chance.sample(range(4), 4):
            known = PROMPTS[row] + found[row]
            if len(found[row]) == NUM_NEW or chance.random() < 0.25:
                continue
            if not is_set[row] or chance.random() < 0.1:
                setups.append(DRIVER.setup(row, known, REQUESTS[row], len(PROMPTS[row]), seed=row))
                cached[row], is_set[row] = 0, True
            left = len(known) - cached[row]
            rows.append((row, cached[row], left if left == 1 else chance.randint(1, left)))
        if not rows:
            continue
        rows.sort(key=lambda entry: entry[2] > 1)  # decodes first
        unfinished = [row for row, num_cached, num_new in rows
                      if num_cached + num_new < len(PROMPTS[row]) + len(found[row])]
        tokens = DRIVER.run(rows, setups, silent=unfinished)
        assert [token.row for token in tokens] == [row for row, _, _ in rows if row not in unfinished]
        for row, _, num_new in rows:
            cached[row] += num_new
        for token in tokens:
            found[token.row].append(token.token_id)
    assert found == ALONE


def test_logprobs_come_with_the_rows_that_asked() -> None:
    driver = StepDriver(tiny_source())
    requests = [SamplingParams(logprobs=3, seed=1), SamplingParams(), SamplingParams(temperature=0.0, logprobs=0)]
    setups = [driver.setup(row, PROMPTS[0], request) for row, request in enumerate(requests)]
    three, none, zero = driver.run([(row, 0, 5) for row in range(3)], setups)
    assert none.logprobs is None
    assert len(three.logprobs.top) == 3 and three.logprobs.token_id == three.token_id
    assert zero.logprobs.top == () and zero.logprobs.token_id == zero.token_id
    # Equal prompts: the greedy token is the likeliest alternative of the other row.
    assert three.logprobs.top[0][0] == zero.token_id
    assert abs(three.logprobs.top[0][1] - zero.logprobs.logprob) < 1e-5


def test_a_result_read_late_keeps_what_its_request_asked_for() -> None:
    driver = StepDriver(tiny_source())
    first = driver.worker.run(driver.plan([(0, 0, 5)], [driver.setup(0, PROMPTS[0], SamplingParams(logprobs=2))]))
    second = driver.worker.run(driver.plan([(0, 0, 5)], [driver.setup(0, PROMPTS[0])]))
    assert len(first.wait().tokens[0].logprobs.top) == 2
    assert second.wait().tokens[0].logprobs is None


def test_a_step_that_samples_nothing_has_an_empty_result() -> None:
    driver = StepDriver(tiny_source())
    assert driver.run([(0, 0, 3)], [driver.setup(0, PROMPTS[0])], silent=[0]) == ()


@pytest.mark.gpu
def test_cuda_gives_the_tokens_of_the_cpu_with_two_steps_in_flight() -> None:
    options = {"head_dim": 64, "num_layers": 1}
    tokens = {}
    for device in ("cpu", "cuda"):
        driver = StepDriver(tiny_source(device=device, dtype="float32", **options))
        setups = [driver.setup(row, prompt, request, seed=row)
                  for row, (prompt, request) in enumerate(zip(PROMPTS, REQUESTS, strict=True))]
        prefill = driver.plan([(row, 0, len(prompt)) for row, prompt in enumerate(PROMPTS)], setups)
        running = [driver.worker.run(prefill)]
        found = []
        for count in range(NUM_NEW):
            rows = [(row, len(prompt) + count, 1) for row, prompt in enumerate(PROMPTS)]
            running.append(driver.worker.run(driver.plan(rows)))  # launched before the step before it is read
            found.append([token.token_id for token in running.pop(0).wait().tokens])
        tokens[device] = found
    assert tokens["cuda"] == tokens["cpu"]
