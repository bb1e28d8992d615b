"""Greedy answers of the demo model in float32 are the same text however their computation was scheduled: alone, in a
batch, in chunks, preempted, on a warm prefix, in a session."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.engine.llm import LLM
from backend.model_source import open_model
from backend.requests import GenerateRequest, SamplingParams

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
NUM_NEW = 48
NUM_ALIVE = 24  # requests at a time in the test of aborts: more than its batch holds, so some wait
TEXTS = [f"Tell me a story about a {one} and a {other}." for one in ("fox", "cat", "owl", "bear")
         for other in ("rabbit", "mouse")] + [
    "给我讲一个狐狸和兔子的故事。", "你好！", "What is seven plus twelve?", "My name is Ada. Please remember it.",
    "Hello, how are you?", "讲一个关于小猫的故事。", "What is three times four?", "Who are you?"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=NUM_NEW)
# The device is chosen as a user's would be, so that the same tests run on a GPU, there in half precision too.
OPTIONS = {"session_len": 1024, "max_batch_size": 32, "cache_max_entry_count": 64}

in_every_dtype = pytest.mark.parametrize("dtype", [
    "float32", pytest.param("bfloat16", marks=pytest.mark.gpu), pytest.param("float16", marks=pytest.mark.gpu)])


def make_llm(**options: object) -> LLM:
    return LLM(open_model(CHECKPOINT, "internlm2"), **{**OPTIONS, **options})


@cache
def alone(dtype: str, quant_policy: int = 0) -> dict[str, str]:
    """Each text's answer, computed by itself."""
    with make_llm(dtype=dtype, quant_policy=quant_policy, enable_prefix_caching=False, max_batch_size=1) as llm:
        return {text: llm.chat([{"role": "user", "content": text}], GREEDY).text for text in TEXTS}


def exact(dtype: str, quant_policy: int) -> int:
    """Half precision rounds differently in another batch, and what is rounded to levels then jumps by a whole one."""
    return quant_policy if dtype == "float32" else 0


def conversations(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


@in_every_dtype
def test_answers_are_texts(dtype):
    assert len(set(alone(dtype).values())) > len(TEXTS) // 2
    assert all(answer.strip() for answer in alone(dtype).values())


@in_every_dtype
def test_batch_of_32_gives_each_its_own_answer(dtype):
    with make_llm(dtype=dtype) as llm:
        texts = TEXTS * 2
        assert len(texts) == 32
        answers = llm.chat(conversations(texts), GREEDY, show_progress=False)
    assert [answer.text for answer in answers] == [alone(dtype)[text] for text in texts]


@in_every_dtype
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8), max_prefill_tokens=st.integers(1, 60),
       max_batch_size=st.integers(1, 8), num_blocks=st.integers(64, 72), block_size=st.sampled_from([16, 32]),
       caching=st.booleans(), quant_policy=st.sampled_from([0, 8, 4]))
def test_any_chunk_and_batch_size_gives_the_same_text(dtype, texts, max_prefill_tokens, max_batch_size, num_blocks,
                                                      block_size, caching, quant_policy):
    quant_policy = exact(dtype, quant_policy)
    with make_llm(dtype=dtype, max_prefill_tokens=max_prefill_tokens, max_batch_size=max_batch_size,
                  block_size=block_size, cache_max_entry_count=num_blocks, enable_prefix_caching=caching,
                  quant_policy=quant_policy) as llm:
        answers = llm.chat(conversations(texts), GREEDY, show_progress=False)
        llm.engine.check_integrity()
    assert [answer.text for answer in answers] == [alone(dtype, quant_policy)[text] for text in texts]


@in_every_dtype
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(preempted_at=st.lists(st.tuples(st.integers(1, NUM_NEW // 2), st.integers(0, 3)), min_size=1, max_size=5),
       quant_policy=st.sampled_from([0, 8, 4]))
def test_a_sequence_preempted_at_any_step_gives_the_same_text(dtype, preempted_at, quant_policy):
    texts, quant_policy = TEXTS[:2] + TEXTS[8:10], exact(dtype, quant_policy)
    with make_llm(dtype=dtype, quant_policy=quant_policy, enable_prefix_caching=False) as llm:
        num_steps = 0
        open_streams = {index: llm.stream(conversation, GREEDY)
                        for index, conversation in enumerate(conversations(texts))}
        answers = ["" for _ in texts]
        scheduler, left = llm.engine.scheduler, sorted(preempted_at)
        while open_streams:
            for index in list(open_streams):
                part = next(open_streams[index], None)
                if part is None:
                    del open_streams[index]
                else:
                    answers[index] += part.text
            num_steps += 1
            while left and left[0][0] <= num_steps and scheduler.running:
                _, which = left.pop(0)
                scheduler.preempt(scheduler.running[which % len(scheduler.running)])
        assert scheduler.num_preemptions == len(preempted_at) - len(left) > 0
    assert answers == [alone(dtype, quant_policy)[text] for text in texts]


@in_every_dtype
def test_warm_prefix_gives_the_same_text(dtype):
    with make_llm(dtype=dtype, block_size=16) as llm:
        cold = llm.chat(conversations(TEXTS[:4]), GREEDY, show_progress=False)
        warm = llm.chat(conversations(TEXTS[:4]), GREEDY, show_progress=False)
    expected = [alone(dtype)[text] for text in TEXTS[:4]]
    assert [answer.text for answer in warm] == [answer.text for answer in cold] == expected
    assert all(answer.num_cached_tokens >= 16 for answer in warm)


@in_every_dtype
@pytest.mark.parametrize(("evict", "quant_policy"), [(False, 0), (True, 0), (False, 8), (True, 4)])
def test_third_turn_of_a_session_gives_the_text_of_the_whole_conversation(dtype, evict, quant_policy):
    turns = ["My name is Ada. Please remember it.", "What is seven plus twelve?", "What is my name?"]
    sampling = dataclasses.replace(GREEDY, max_new_tokens=96)
    with make_llm(dtype=dtype, quant_policy=exact(dtype, quant_policy), enable_prefix_caching=False) as llm:
        messages: list[dict[str, str]] = []
        for turn in turns:
            question = {"role": "user", "content": turn}
            in_session = "".join(part.text for part in llm.stream([question], sampling, session_id=1))
            messages.append(question)
            whole = llm.chat(messages, sampling)
            assert in_session == whole.text
            messages.append({"role": "assistant", "content": in_session})
            if evict:
                assert llm.engine.scheduler.sessions.evict_one()


@in_every_dtype
def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(dtype):
    sampling = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_new_tokens=NUM_NEW)
    with make_llm(dtype=dtype) as llm:
        one = llm.chat(conversations(TEXTS[:1])[0], sampling).text
        many = llm.chat(conversations(TEXTS), sampling, show_progress=False)
    assert many[0].text == one


def test_a_thousand_random_aborts_leave_every_block_free():
    """On the real executor; the schedule is the fake one's of tests/backend/engine/test_engine.py."""
    import random

    source = random.Random(3)
    with make_llm(max_prefill_tokens=64, max_batch_size=16) as llm:
        engine = llm.engine
        alive, last_seen, num_aborted_running = [], {}, 0
        for number in range(1000 + NUM_ALIVE):
            prompt = tuple(source.randrange(3, 500) for _ in range(source.randrange(1, 40)))
            engine.add_request(GenerateRequest(str(number), prompt, GREEDY))
            alive.append(str(number))
            if number % 4 == 0:
                last_seen.update((output.request_id, output.finish_reason) for output in engine.step())
            if len(alive) > NUM_ALIVE:
                name = alive.pop(source.randrange(len(alive)))
                num_aborted_running += name in last_seen and last_seen[name] is None
                engine.abort(name)
        assert num_aborted_running > 300  # the others were still waiting, or had ended
        for name in alive:
            engine.abort(name)
        while engine.has_work:
            engine.step()
        engine.check_integrity()
        assert engine.scheduler.blocks.num_free == engine.executor.num_blocks
