"""LLM on the demo model: texts in, texts out; stops, logprobs, bad words, tools, sessions, and wrong input."""

from __future__ import annotations

import gc
import json
import signal
from pathlib import Path

import pytest

from backend import LLM, SamplingParams
from backend.errors import CapacityError, ConfigError, RequestError, SessionError, TemplateError, WorkspaceError
from backend.requests import FinishReason

CHECKPOINT = Path(__file__).parents[3] / "demo" / "checkpoint"
STORY = [{"role": "user", "content": "Tell me a story about a fox and a rabbit."}]
ADD = {"name": "add", "description": "Add two numbers.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}


def greedy(**options: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_new_tokens": 64, **options})


@pytest.fixture(scope="module")
def llm():
    with LLM(CHECKPOINT, "internlm2", dtype="float32", session_len=512, max_batch_size=16,
             cache_max_entry_count=64) as model:
        yield model
        assert_idle(model)


def assert_idle(llm: LLM) -> None:
    """No request is left, and once the steps in flight are read, every block is accounted for."""
    while llm.engine.has_work:
        assert not llm.engine.step(), "somebody still gets tokens"
    llm.engine.check_integrity()


def test_stream_joined_is_the_completion(llm):
    parts = list(llm.stream(STORY, greedy()))
    whole = llm.chat(STORY, greedy())
    assert "".join(part.text for part in parts) == whole.text
    assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish_reason is whole.finish_reason is FinishReason.LENGTH
    assert whole.num_prompt_tokens == len(llm.front_end.chat_ids(STORY))


def test_an_answer_ends_at_the_models_end_and_does_not_show_it(llm):
    answer = llm.chat([{"role": "user", "content": "What is seven plus twelve?"}], greedy())
    assert answer.finish_reason is FinishReason.STOP
    assert "im_end" not in answer.text and answer.text == answer.text.strip()
    assert answer.token_ids[-1] in llm.front_end.model.eos_token_ids


@pytest.mark.parametrize("stop", [" quiet forest", "quiet", "t fo", "lived in a quiet forest. One"])
def test_a_stop_text_ends_the_answer_and_is_cut_from_it(llm, stop):
    free = llm.chat(STORY, greedy()).text
    answer = llm.chat(STORY, greedy(stop=(stop,)))
    assert stop in free
    assert answer.text == free[:free.index(stop)]
    assert answer.finish_reason is FinishReason.STOP


def test_the_turn_after_a_stop_text_continues_from_the_shown_text(llm):
    stopped = "".join(part.text for part in llm.stream(STORY, greedy(stop=("forest",)), session_id=5))
    question = {"role": "user", "content": "What is seven plus twelve?"}
    in_session = "".join(part.text for part in llm.stream([question], greedy(), session_id=5))
    llm.end_session(5)
    whole = llm.chat([*STORY, {"role": "assistant", "content": stopped}, question], greedy())
    assert in_session == whole.text


def test_a_stop_text_that_ends_with_the_last_allowed_token_is_not_part_of_the_session(llm):
    free = llm.chat(STORY, greedy(max_new_tokens=12))
    stop = free.text[-4:]
    assert free.finish_reason is FinishReason.LENGTH and free.text.count(stop) == 1
    stopped = llm.chat(STORY, greedy(max_new_tokens=12, stop=(stop,)), session_id=5)
    assert stopped.finish_reason is FinishReason.STOP and len(stopped.token_ids) == 12
    shorter = llm.chat(STORY, greedy(max_new_tokens=12, stop=(stop,)))
    question = [{"role": "user", "content": "What is seven plus twelve?"}]
    second = llm.chat(question, greedy(), session_id=5)
    llm.end_session(5)
    assert second.text == llm.chat([*STORY, {"role": "assistant", "content": shorter.text}, *question], greedy()).text
    assert second.num_prompt_tokens < stopped.num_prompt_tokens + 12 + len(llm.front_end.turn_ids(question[0], False))


def test_a_stop_id_ends_the_answer(llm):
    free = llm.chat(STORY, greedy())
    stopped = llm.chat(STORY, greedy(stop_ids=(free.token_ids[10],)))
    assert stopped.token_ids == free.token_ids[:free.token_ids.index(free.token_ids[10]) + 1]
    assert stopped.finish_reason is FinishReason.STOP


def test_bad_words_never_appear(llm):
    free = llm.chat(STORY, greedy()).text
    answer = llm.chat(STORY, greedy(bad_words=("fox", "forest"))).text
    assert "fox" in free and "forest" in free
    assert "fox" not in answer and "forest" not in answer


def test_min_new_tokens_and_ignore_eos_pass_the_models_end(llm):
    question = [{"role": "user", "content": "What is seven plus twelve?"}]
    free = llm.chat(question, greedy())
    assert len(free.token_ids) < 30
    assert len(llm.chat(question, greedy(min_new_tokens=30)).token_ids) >= 30
    assert len(llm.chat(question, greedy(ignore_eos=True)).token_ids) == 64


def test_logprobs_come_with_every_token_and_greedy_takes_the_likeliest(llm):
    answer = llm.chat(STORY, greedy(logprobs=3, max_new_tokens=8))
    assert len(answer.logprobs) == len(answer.token_ids) == 8
    for token_id, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        assert entry.token_id == token_id == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]


def test_a_seed_repeats_and_another_differs(llm):
    def sampled(seed: int) -> str:
        return llm.chat(STORY, SamplingParams(temperature=1.5, top_p=1.0, seed=seed, max_new_tokens=40)).text
    assert sampled(1) == sampled(1) != sampled(2)


def test_a_tool_call_is_made_and_its_result_used(llm):
    messages = [{"role": "user", "content": "What is 1234 plus 4321? Use the tool."}]
    sampling = greedy()
    call = llm.chat(messages, sampling, tools=[ADD]).text
    assert "im_end" not in call
    body = call.partition("<|action_start|><|plugin|>")[2]
    assert json.loads(body.partition("<|action_end|>")[0]) == {"name": "add", "parameters": {"a": 1234, "b": 4321}}
    messages += [{"role": "assistant", "content": call},
                 {"role": "environment", "name": "plugin", "content": "5555"}]
    assert "5555" in llm.chat(messages, sampling, tools=[ADD]).text


def test_a_session_of_chats_is_the_conversation(llm):
    name, question = ({"role": "user", "content": text} for text in ("My name is Ada.", "What is my name?"))
    first = llm.chat([name], greedy(), session_id=7)
    second = llm.chat([question], greedy(), session_id=7)
    llm.end_session(7)
    assert second.num_prompt_tokens > first.num_prompt_tokens + len(first.token_ids)
    assert second.text == llm.chat([name, {"role": "assistant", "content": first.text}, question], greedy()).text


def test_many_prompts_answer_in_their_order(llm):
    conversations = [[{"role": "user", "content": f"Count from 1 to {count}."}] for count in range(3, 25)]
    answers = llm.chat(conversations, greedy(max_new_tokens=200), show_progress=False)
    for count, answer in zip(range(3, 25), answers, strict=True):
        assert str(count) in answer.text and str(count + 1) not in answer.text.split(str(count))[-1]


def test_an_empty_text_begins_at_the_models_start(llm):
    assert llm.generate("", greedy(max_new_tokens=4)).num_prompt_tokens == 1


def test_each_prompt_may_have_its_own_sampling(llm):
    short, long = llm.generate(["Once", "Once"], [greedy(max_new_tokens=3), greedy(max_new_tokens=9, ignore_eos=True)],
                               show_progress=False)
    assert (len(short.token_ids), len(long.token_ids)) == (3, 9)


def test_streams_may_be_read_in_turns_and_left_early(llm):
    one, other = llm.stream(STORY, greedy()), llm.stream("Once upon a time", greedy(ignore_eos=True))
    texts = [next(one).text + next(one).text, next(other).text]
    one.close()
    texts[1] += "".join(part.text for part in other)
    assert texts[1] == llm.generate("Once upon a time", greedy(ignore_eos=True)).text
    assert_idle(llm)


def test_a_stream_that_nobody_reads_leaves_its_session_free(llm):
    llm.stream(STORY, greedy(), session_id=8)
    assert "".join(part.text for part in llm.stream(STORY, greedy(), session_id=8))
    llm.end_session(8)


def abandon_a_stream(llm: LLM) -> None:
    """In a reference cycle, so that only the garbage collector finds it."""
    ring: list[object] = [llm.stream("Once", greedy(ignore_eos=True))]
    ring.append(ring)
    next(ring[0])


@pytest.mark.parametrize("act", ["_advance", "_num_new_blocks"])
def test_a_stream_that_the_garbage_collector_finds_in_the_middle_of_the_engines_work_harms_nothing(
        llm, monkeypatch, act):
    prompts, sampling = ["two is", "three may"], greedy(max_new_tokens=8, ignore_eos=True)
    expected = [answer.token_ids for answer in llm.generate(prompts, sampling, show_progress=False)]
    undisturbed = getattr(llm.engine.scheduler, act)

    def disturbed(*arguments: object) -> object:
        gc.collect()
        return undisturbed(*arguments)

    gc.disable()
    try:
        abandon_a_stream(llm)
        monkeypatch.setattr(llm.engine.scheduler, act, disturbed)
        assert [answer.token_ids for answer in llm.generate(prompts, sampling, show_progress=False)] == expected
    finally:
        gc.enable()
    assert not llm._streams
    assert_idle(llm)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda llm: llm.generate([[]]), RequestError, "the prompt is empty"),
    (lambda llm: llm.generate([[5, 10**6]]), RequestError, "token id 1000000, but the vocabulary ends at 3071"),
    (lambda llm: llm.generate("fox " * 600), RequestError, "exceed session_len=512"),
    (lambda llm: llm.generate(None), RequestError, "prompts is None; give a text"),
    (lambda llm: llm.generate(["a", 3]), RequestError, r"prompts\[1\] is of type int; give a text"),
    (lambda llm: llm.chat(STORY, {"temperature": 0}), RequestError, r"of type dict; give SamplingParams"),
    (lambda llm: llm.chat(STORY[0]), RequestError, "messages is of type dict; give a list"),
    (lambda llm: llm.chat(STORY, session_id="ada"), RequestError, "session_id='ada' does not work"),
    (lambda llm: llm.stream("Once", session_id=-1), RequestError, "session_id=-1 does not work"),
    (lambda llm: llm.chat([STORY, STORY], session_id=1), RequestError, "one conversation, not for 2"),
    (lambda llm: llm.chat(STORY, tools="add"), TemplateError, "tools is a str; give a list"),
    (lambda llm: llm.chat(STORY, tools=[1]), TemplateError, r"tools\[0\] is a int; give an object"),
    (lambda llm: llm.stream(["a", "b"]), RequestError, "one prompt at a time"),
    (lambda llm: llm.generate(["a", "b"], [greedy()]), RequestError, "1 SamplingParams for 2 prompts"),
    (lambda llm: llm.end_session(99), SessionError, "session 99 is not known"),
])
def test_wrong_input_is_refused_in_words_and_harms_nothing(llm, call, error, message):
    with pytest.raises(error, match=message):
        call(llm)
    assert_idle(llm)
    assert llm.generate("Once", greedy(max_new_tokens=2)).token_ids


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"sesion_len": 5}, ConfigError, "unknown engine option 'sesion_len'; did you mean 'session_len'"),
    ({"cache_max_entry_count": 3}, CapacityError, "session_len=2048 needs 32 KV blocks"),
    ({"device": "tpu"}, ConfigError, "device='tpu' is not supported"),
    ({"dtype": "int3"}, ConfigError, "dtype='int3' is not supported"),
])
def test_a_wrong_option_is_refused_in_words(options, error, message):
    with pytest.raises(error, match=message):
        LLM(CHECKPOINT, "internlm2", **options)


def test_a_folder_that_is_no_model_is_refused_in_words(tmp_path):
    with pytest.raises(WorkspaceError, match="is not a folder"):
        LLM(tmp_path / "nothing")


def test_an_interrupt_waits_for_the_end_of_its_step_and_leaves_the_model_usable(llm, monkeypatch):
    prompt = list(range(100, 300))  # blocks of its own, so that none is cached yet
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    launch = llm.engine.executor.launch

    def interrupted(plan: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return launch(plan)

    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(llm.engine.executor, "launch", interrupted)
            llm.generate(prompt, greedy())
    finally:
        signal.signal(signal.SIGINT, before)
    warm = llm.generate(prompt, greedy(max_new_tokens=8))
    assert warm.num_cached_tokens > 0
    with LLM(CHECKPOINT, "internlm2", dtype="float32", session_len=512, max_batch_size=1) as fresh:
        assert warm.token_ids == fresh.generate(prompt, greedy(max_new_tokens=8)).token_ids
