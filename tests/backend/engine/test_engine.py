"""The engine's decisions, over a fake executor: whatever the schedule, the tokens are the same and no block is lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.config import EngineConfig, ModelConfig, RopeConfig
from backend.engine.engine import Engine
from backend.engine.sequence import Sequence
from backend.errors import CapacityError, EngineDeadError, RequestError, SessionError
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, SamplingParams
from tests.backend.engine.fake_executor import EOS, VOCAB_SIZE, FakeExecutor, completion, next_token

BLOCK = 16
MODEL = ModelConfig("fake", VOCAB_SIZE, 8, 1, 1, 1, 8, 8, 1e-5, RopeConfig(8), 4096, 0, (EOS,))


def make_engine(num_blocks: int = 64, max_in_flight: int = 1, **options: int | bool) -> Engine:
    config = EngineConfig(**{"session_len": 256, "max_batch_size": 8, "max_prefill_tokens": 64, "block_size": BLOCK,
                             **options})
    return Engine(MODEL, config, FakeExecutor(num_blocks, BLOCK, max_in_flight))


def prompt(seed: int, length: int) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(2, VOCAB_SIZE) for _ in range(length))


def request(name: str, token_ids: tuple[int, ...], **sampling: object) -> GenerateRequest:
    turn = {key: sampling.pop(key) for key in ("session_id", "session_start", "session_is_new", "session_step",
                                               "end_session", "echo_prompt", "prompt_logprobs") if key in sampling}
    return GenerateRequest(name, token_ids, SamplingParams(**{"max_new_tokens": 40, **sampling}), **turn)


def run(engine: Engine) -> dict[str, list[GenerateOutput]]:
    outputs: dict[str, list[GenerateOutput]] = {}
    for _ in range(10_000):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    raise AssertionError("the engine does not come to an end")


def tokens(outputs: list[GenerateOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def test_one_request_gets_the_models_completion():
    engine = make_engine()
    engine.add_request(request("a", prompt(1, 30)))
    outputs = run(engine)["a"]
    assert tokens(outputs) == completion(list(prompt(1, 30)), 40)
    assert outputs[-1].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert outputs[-1].num_completion_tokens == len(tokens(outputs))


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 60)), min_size=1, max_size=14),
       num_blocks=st.integers(16, 60), max_in_flight=st.integers(1, 2), max_batch_size=st.integers(1, 6),
       max_prefill_tokens=st.integers(1, 100), prefix=st.integers(0, 80), caching=st.booleans())
def test_any_schedule_gives_the_same_tokens(lengths, num_blocks, max_in_flight, max_batch_size, max_prefill_tokens,
                                            prefix, caching):
    """Few blocks force preemptions; a common prefix exercises sharing; small budgets force chunks. Every other request
    wants its prompt's logprobs, all of them whatever is cached."""
    engine = make_engine(num_blocks, max_in_flight, max_batch_size=max_batch_size,
                         max_prefill_tokens=max_prefill_tokens, enable_prefix_caching=caching)
    prompts = {str(i): prompt(99, prefix)[:length - 1] + prompt(i, length)[-1:] + prompt(i, length)
               for i, (length, _) in enumerate(lengths)}
    prompts = {name: ids[:190] for name, ids in prompts.items()}
    for name, ids in prompts.items():
        engine.add_request(request(name, ids, max_new_tokens=lengths[int(name)][1],
                                   prompt_logprobs=0 if int(name) % 2 else None))
    outputs = run(engine)
    for name, ids in prompts.items():
        assert tokens(outputs[name]) == completion(list(ids), lengths[int(name)][1])
        found = [(one.token_id, -one.logprob) for one in outputs[name][0].prompt_logprobs]
        assert found == (list(zip(ids[1:], range(1, len(ids)), strict=True)) if int(name) % 2 else [])
        assert not any(output.prompt_logprobs for output in outputs[name][1:])
    assert engine.scheduler.blocks.num_free == num_blocks
    assert engine.executor.largest_step <= max_prefill_tokens + max_batch_size


@settings(max_examples=80, deadline=None)
@given(data=st.data(), num_blocks=st.integers(16, 48), max_in_flight=st.integers(1, 2))
def test_sessions_aborts_and_late_arrivals_keep_the_books_and_the_tokens(data, num_blocks, max_in_flight):
    """A random play of turns, aborts, session ends and steps; every completed turn is the model's own."""
    engine = make_engine(num_blocks, max_in_flight, max_prefill_tokens=data.draw(st.integers(3, 70)))
    history: dict[int, list[int]] = {}
    running: dict[str, tuple[int | None, list[int], int]] = {}
    seen: dict[str, list[int]] = {}

    def step() -> None:
        for output in engine.step():
            seen.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is None:
                continue
            session, ids, limit = running.pop(output.request_id)
            got = seen[output.request_id]
            expected = completion(ids, limit)
            assert got == expected[:len(got)] if output.finish_reason is FinishReason.ABORT else got == expected
            if session in history and (got or output.num_cached_tokens):
                history[session] = ids + (got[:-1] if got and got[-1] == EOS else got)
            elif session in history and output.finish_reason is FinishReason.ABORT:
                if session in engine.scheduler.sessions:
                    engine.end_session(session)  # whether its prompt was taken depends on when the abort came
                del history[session]
        engine.check_integrity()

    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["turn", "turn", "request", "abort", "step", "end"]))
        ids = list(prompt(number, data.draw(st.integers(1, 40))))
        if action == "turn":
            session = data.draw(st.integers(0, 3))
            before = history.get(session, [])
            busy = any(owner == session for owner, _, _ in running.values())
            if busy or len(before) + len(ids) + 20 > 256:
                continue
            history.setdefault(session, [])
            engine.add_request(request(str(number), tuple(ids), session_id=session, max_new_tokens=20))
            running[str(number)] = (session, before + ids, 20)
        elif action == "request":
            engine.add_request(request(str(number), tuple(ids), max_new_tokens=30))
            running[str(number)] = (None, ids, 30)
        elif action == "abort" and running:
            engine.abort(data.draw(st.sampled_from(sorted(running))))
            engine.check_integrity()
        elif action == "end" and history:
            session = data.draw(st.sampled_from(sorted(history)))
            engine.end_session(session)
            del history[session]
        for _ in range(data.draw(st.integers(0, 6))):
            step()
    while engine.has_work:
        step()
    for session in list(history):
        engine.end_session(session)
    engine.check_integrity()
    assert engine.scheduler.blocks.num_free == num_blocks


def test_a_thousand_random_aborts_leave_every_block_free():
    engine = make_engine(num_blocks=40, max_in_flight=2)
    source = random.Random(5)
    alive: list[str] = []
    for number in range(1000):
        engine.add_request(request(str(number), prompt(number, source.randrange(1, 120)), max_new_tokens=30))
        alive.append(str(number))
        for _ in range(source.randrange(3)):
            engine.step()
        engine.abort(alive.pop(source.randrange(len(alive))))
        engine.check_integrity()
    for name in alive:
        engine.abort(name)
    run(engine)
    assert engine.scheduler.blocks.num_free == 40


def test_second_turn_of_a_session_computes_only_the_new_tokens():
    engine = make_engine(enable_prefix_caching=False)
    engine.add_request(request("1", prompt(1, 50), session_id=7, ignore_eos=True, max_new_tokens=10))
    first = tokens(run(engine)["1"])
    computed = engine.executor.num_computed
    engine.add_request(request("2", prompt(2, 5), session_id=7, max_new_tokens=1))
    outputs = run(engine)["2"]
    assert tokens(outputs) == completion([*prompt(1, 50), *first, *prompt(2, 5)], 1)
    assert engine.executor.num_computed - computed == 6  # the last token of turn one never had KV
    assert outputs[-1].num_cached_tokens == 59


def test_evicted_session_continues_as_if_it_had_stayed():
    engine = make_engine(num_blocks=16, enable_prefix_caching=False)
    engine.add_request(request("1", prompt(1, 100), session_id=7, ignore_eos=True, max_new_tokens=10))
    first = tokens(run(engine)["1"])
    engine.add_request(request("other", prompt(3, 200), max_new_tokens=5))
    run(engine)
    engine.add_request(request("2", prompt(2, 5), session_id=7))
    outputs = run(engine)["2"]
    assert tokens(outputs) == completion([*prompt(1, 100), *first, *prompt(2, 5)], 40)
    assert outputs[-1].num_cached_tokens == 0


@pytest.mark.parametrize("step", [0, 15, 16, 33, 49])
def test_session_step_rolls_a_session_back(step):
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 50), session_id=7))
    run(engine)
    engine.add_request(request("2", prompt(2, 5), session_id=7, session_step=step))
    assert tokens(run(engine)["2"]) == completion([*prompt(1, 50)[:step], *prompt(2, 5)], 40)


def test_text_stop_leaves_only_the_kept_tokens_in_the_session():
    engine = make_engine(max_in_flight=2)
    engine.add_request(request("1", prompt(1, 50), session_id=7, ignore_eos=True))
    got: list[int] = []
    while len(got) < 12:
        got += tokens(engine.step())
    engine.finish("1", 7, 9)
    engine.check_integrity()
    engine.add_request(request("2", prompt(2, 5), session_id=7))
    assert tokens(run(engine)["2"]) == completion([*prompt(1, 50), *got[:9], *prompt(2, 5)], 40)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(("ignore_eos", "is_evicted"), [(True, False), (True, True), (False, False)])
def test_text_stop_cuts_an_answer_that_has_ended_by_itself(caching, ignore_eos, is_evicted):
    engine = make_engine(enable_prefix_caching=caching)
    engine.add_request(request("1", prompt(1, 50), session_id=7, ignore_eos=ignore_eos))
    outputs = run(engine)["1"]
    got = tokens(outputs)
    assert outputs[-1].finish_reason is (FinishReason.LENGTH if ignore_eos else FinishReason.STOP) and len(got) > 8
    assert engine.scheduler.sessions.evict_one() or not is_evicted
    engine.finish("1", 7, 4)
    engine.check_integrity()
    engine.add_request(request("2", prompt(2, 5), session_id=7))
    outputs = run(engine)["2"]
    assert tokens(outputs) == completion([*prompt(1, 50), *got[:4], *prompt(2, 5)], 40)
    assert outputs[-1].num_prompt_tokens == 59


def test_text_stop_of_an_earlier_answer_leaves_a_session_that_has_gone_on():
    engine = make_engine()
    history = run_turn(engine, "1", 1)
    engine.add_request(request("2", prompt(2, 20), session_id=7, ignore_eos=True))
    engine.finish("1", 7, 4)
    history += [*prompt(2, 20), *tokens(run(engine)["2"])]
    engine.finish("1", 7, 4)
    assert run_turn(engine, "3", 3, end_session=True)[20:] == completion_of((*history, *prompt(3, 20)))
    engine.finish("3", 7, 4)
    assert 7 not in engine.scheduler.sessions


def test_two_turns_at_once_on_one_session_are_refused_and_the_first_goes_on():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 50), session_id=7))
    with pytest.raises(SessionError, match="session 7 is busy with another turn") as refused:
        engine.add_request(request("2", prompt(2, 5), session_id=7))
    assert refused.value.field == "session_id"
    assert tokens(run(engine)["1"]) == completion(list(prompt(1, 50)), 40)


def test_warm_prefix_is_not_computed_again():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 64), max_new_tokens=1))
    run(engine)
    computed = engine.executor.num_computed
    engine.add_request(request("2", prompt(1, 64) + prompt(2, 3), max_new_tokens=1))
    assert run(engine)["2"][-1].num_cached_tokens == 64
    assert engine.executor.num_computed - computed == 3


def test_generated_blocks_are_a_prefix_too():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 10), ignore_eos=True, max_new_tokens=40))
    text = (*prompt(1, 10), *tokens(run(engine)["1"]))
    engine.add_request(request("2", text + prompt(2, 3), max_new_tokens=1))
    assert run(engine)["2"][-1].num_cached_tokens == 48  # 49 of the 50 tokens have KV: three full blocks


def test_prompts_of_one_step_share_their_prefix():
    engine = make_engine(max_prefill_tokens=1000)
    for name in "abcd":
        engine.add_request(request(name, prompt(1, 64) + prompt(ord(name), 4), max_new_tokens=1))
    run(engine)
    assert engine.executor.num_computed == 64 + 4 * 4


def test_a_block_that_a_decode_fills_is_shared_from_the_next_step_on():
    """In the same step, a row with one new token would read it while it is being stored."""
    engine = make_engine()
    text = (*prompt(1, BLOCK - 2), *completion(list(prompt(1, BLOCK - 2)), 2))
    engine.add_request(request("1", text[:-2], ignore_eos=True))
    for _ in range(2):
        engine.step()
    engine.add_request(request("2", (*text, 5), max_new_tokens=1))
    (computed_it_too,) = [output for output in engine.step() if output.request_id == "2"]  # "1" fills its block
    engine.add_request(request("3", (*text, 6), max_new_tokens=1))
    (shared_it,) = run(engine)["3"]
    assert (computed_it_too.num_cached_tokens, shared_it.num_cached_tokens) == (0, BLOCK)


def test_no_new_tokens_means_prefill_only():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 50), session_id=7, max_new_tokens=0))
    (output,) = run(engine)["1"]
    assert (output.token_ids, output.finish_reason) == ((), FinishReason.LENGTH)
    engine.add_request(request("2", prompt(2, 5), session_id=7))
    assert tokens(run(engine)["2"]) == completion([*prompt(1, 50), *prompt(2, 5)], 40)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: request("a", prompt(1, 250), max_new_tokens=10), r"250 prompt tokens \+ 10 new .* session_len=256"),
    (lambda: request("a", prompt(1, 256), max_new_tokens=None), "exceed session_len=256"),
    (lambda: request("a", ()), "the prompt is empty"),
    (lambda: request("a", (5, VOCAB_SIZE)), f"token id {VOCAB_SIZE}, but the vocabulary ends at {VOCAB_SIZE - 1}"),
    (lambda: request("a", (5,), bad_words=((3, -1),)), "bad_words holds token id -1"),
    (lambda: request("a", (5,), session_id=3, session_step=4), "step=4 cannot be reached"),
])
def test_a_bad_request_is_refused_and_changes_nothing(make, message):
    engine = make_engine()
    engine.add_request(request("good", prompt(1, 50)))
    with pytest.raises(RequestError, match=message):
        engine.add_request(make())
    outputs = run(engine)
    assert list(outputs) == ["good"]
    assert tokens(outputs["good"]) == completion(list(prompt(1, 50)), 40)


def test_a_request_id_in_use_is_refused():
    engine = make_engine()
    engine.add_request(request("a", prompt(1, 5)))
    with pytest.raises(RequestError, match="request id 'a' is in use"):
        engine.add_request(request("a", prompt(1, 5)))


def test_a_step_that_is_interrupted_ends_the_engine_instead_of_sharing_blocks_that_were_never_filled():
    engine = make_engine(max_in_flight=1)
    engine.add_request(request("a", prompt(1, 60)))

    def interrupted(plan: object) -> None:
        raise KeyboardInterrupt

    engine.executor.launch = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.abort("a")
    engine.add_request(request("b", prompt(1, 60)))
    with pytest.raises(EngineDeadError, match="ended in the middle of a step"):
        engine.step()


def test_a_request_waits_while_it_would_take_the_block_that_a_running_one_is_about_to_need():
    engine = make_engine(num_blocks=16, session_len=16 * BLOCK, max_prefill_tokens=16 * BLOCK)
    for seed in range(4):
        engine.add_request(request(str(seed), prompt(seed, 4 * BLOCK - 1), max_new_tokens=3, ignore_eos=True))
    run(engine)
    assert engine.scheduler.num_preemptions == 0


def test_requests_that_fit_into_their_blocks_leave_none_free_for_one_another():
    engine = make_engine(num_blocks=8, max_prefill_tokens=16 * BLOCK)
    for seed in range(12):
        engine.add_request(request(str(seed), prompt(seed, BLOCK - 2), max_new_tokens=2, ignore_eos=True))
    engine.step()
    assert len(engine.scheduler.running) == 8
    run(engine)


def run_turn(engine: Engine, name: str, seed: int, **options: object) -> list[int]:
    """A turn of session 7 with a prompt of its own; returns the prompt and its completion."""
    options = {"ignore_eos": True, "max_new_tokens": 8, **options}
    engine.add_request(request(name, prompt(seed, 20), session_id=7, **options))
    return [*prompt(seed, 20), *tokens(run(engine)[name])]


def test_start_begins_a_session_afresh():
    engine = make_engine()
    run_turn(engine, "1", 1)
    assert run_turn(engine, "2", 2, session_start=True)[20:] == completion_of(prompt(2, 20))


def test_a_turn_that_must_find_its_session_is_refused_without_it():
    engine = make_engine()
    with pytest.raises(SessionError, match="session 7 is not known: it was never started, or has ended or expired"):
        run_turn(engine, "1", 1, session_start=False)
    run_turn(engine, "2", 1, end_session=True)
    with pytest.raises(SessionError, match="session 7 is not known"):
        run_turn(engine, "3", 1, session_start=False)


def test_a_turn_whose_session_has_to_be_new_is_refused_with_a_known_one():
    engine = make_engine()
    history = run_turn(engine, "1", 1, session_start=True, session_is_new=True)
    with pytest.raises(SessionError, match="session 7 is under way"):
        run_turn(engine, "2", 2, session_start=True, session_is_new=True)
    assert run_turn(engine, "3", 3)[20:] == completion_of((*history, *prompt(3, 20)))


def test_start_while_the_session_runs_is_refused():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 20), session_id=7))
    with pytest.raises(SessionError, match="session 7 is busy"):
        engine.add_request(request("2", prompt(2, 20), session_id=7, session_start=True))
    with pytest.raises(SessionError, match="session 7 is busy"):
        engine.add_request(request("3", prompt(2, 20), session_id=7, end_session=True))


def test_stop_interrupts_the_turn_and_keeps_what_it_generated():
    engine = make_engine(max_in_flight=2)
    engine.add_request(request("1", prompt(1, 20), session_id=7, ignore_eos=True))
    got: list[int] = []
    while len(got) < 5:
        got += tokens(engine.step())
    engine.stop_session(7)
    (last,) = run(engine)["1"]
    assert (last.finish_reason, last.token_ids) == (FinishReason.ABORT, ())
    engine.add_request(request("2", prompt(2, 5), session_id=7, session_start=False))
    assert tokens(run(engine)["2"]) == completion([*prompt(1, 20), *got, *prompt(2, 5)], 40)


def test_stop_that_forgets_ends_a_running_and_an_idle_session():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 20), session_id=7))
    engine.step()
    engine.stop_session(7, forget=True)
    run(engine)
    assert 7 not in engine.scheduler.sessions
    run_turn(engine, "2", 2)
    engine.stop_session(7, forget=True)
    assert 7 not in engine.scheduler.sessions
    assert engine.scheduler.blocks.num_free == 64


def test_a_session_whose_first_turn_never_ran_is_not_known():
    engine = make_engine(max_in_flight=2)
    engine.add_request(request("1", prompt(1, 20), session_id=7, session_start=True))
    engine.abort("1")
    with pytest.raises(SessionError, match="session 7 is not known"):
        engine.add_request(request("2", prompt(2, 5), session_id=7, session_start=False))
    assert len(engine.scheduler.sessions) == 0


def test_a_later_turn_that_never_ran_leaves_the_session_as_it_was():
    engine = make_engine()
    before = run_turn(engine, "1", 1)
    engine.add_request(request("2", prompt(2, 5), session_id=7))
    engine.abort("2")
    run(engine)
    engine.add_request(request("3", prompt(3, 5), session_id=7, session_start=False))
    assert tokens(run(engine)["3"]) == completion([*before, *prompt(3, 5)], 40)


def test_stop_on_an_idle_or_unknown_session_is_refused():
    engine = make_engine()
    with pytest.raises(SessionError, match="session 7 is not known"):
        engine.stop_session(7)
    run_turn(engine, "1", 1)
    with pytest.raises(SessionError, match="session 7 is idle, so there is nothing to stop"):
        engine.stop_session(7)


def test_end_while_a_turn_runs_takes_effect_after_it():
    engine = make_engine()
    engine.add_request(request("1", prompt(1, 20), session_id=7))
    engine.end_session(7)
    assert tokens(run(engine)["1"]) == completion(list(prompt(1, 20)), 40)
    assert 7 not in engine.scheduler.sessions


def test_a_session_expires_when_it_is_idle_for_too_long():
    engine = make_engine(session_ttl_s=10)
    run_turn(engine, "1", 1)
    engine.scheduler.sessions._sessions[7].idle_since_s -= 11
    engine.expire_sessions()
    assert 7 not in engine.scheduler.sessions
    assert engine.scheduler.blocks.num_free == 64


def test_sessions_that_hold_too_many_tokens_together_are_forgotten_the_longest_idle_first():
    engine = make_engine()
    sessions = engine.scheduler.sessions
    sessions._max_tokens = 65
    for name, session_id in (("a", 1), ("b", 2), ("c", 1), ("d", 3)):
        engine.add_request(request(name, prompt(session_id, 20), session_id=session_id, session_start=True,
                                   max_new_tokens=1))
        run(engine)
        assert sessions._num_tokens == 21 * len(sessions)
    engine.add_request(request("e", prompt(4, 20), session_id=4, max_new_tokens=1))
    run(engine)
    assert [session_id in sessions for session_id in range(1, 5)] == [True, False, True, True]
    for session_id in (1, 3, 4):
        engine.end_session(session_id)
    assert sessions._num_tokens == 0 and engine.scheduler.blocks.num_free == 64


def test_a_full_queue_refuses_the_next_request():
    engine = make_engine(max_queued=2, max_batch_size=1)
    for name in "abc":  # one for the free row, which does not count
        engine.add_request(request(name, prompt(1, 5)))
    with pytest.raises(CapacityError, match="2 requests are waiting, as many as max_queued allows; try again later"):
        engine.add_request(request("d", prompt(1, 5)))
    assert set(run(engine)) == {"a", "b", "c"}


def test_aborting_a_queued_request_compares_it_with_no_other(monkeypatch):
    engine = make_engine()
    names = [str(number) for number in range(100)]
    for name in names:
        engine.add_request(request(name, prompt(1, 5)))
    compared: list[object] = []
    monkeypatch.setattr(Sequence, "__eq__", lambda one, other: compared.append(other) or one is other)
    for name in reversed(names):
        engine.abort(name)
    assert not compared and not engine.scheduler.waiting


def test_a_preempted_sequence_is_the_first_of_the_queue():
    engine = make_engine()
    engine.add_request(request("running", prompt(1, 5)))
    engine.step()
    engine.add_request(request("queued", prompt(2, 5)))
    engine.scheduler.preempt(engine.scheduler.running[0])
    assert [sequence.request_id for sequence in engine.scheduler.waiting] == ["running", "queued"]


def test_echo_brings_the_whole_prompt_with_the_first_output_only():
    engine = make_engine()
    first = run_turn(engine, "1", 1)
    engine.add_request(request("2", prompt(2, 5), session_id=7, echo_prompt=True))
    outputs = run(engine)["2"]
    assert list(outputs[0].prompt_ids) == [*first, *prompt(2, 5)]
    assert not any(output.prompt_ids for output in outputs[1:])


def completion_of(token_ids: tuple[int, ...]) -> list[int]:
    """Eight tokens after token_ids, whatever they are."""
    text = list(token_ids)
    for _ in range(8):
        text.append(next_token(text))
    return text[len(token_ids):]
