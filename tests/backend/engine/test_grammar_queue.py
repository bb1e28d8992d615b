"""Sequences wait for their grammars where others would wait with them, and nowhere else."""

from __future__ import annotations

import pytest

from backend.engine.engine import Engine
from backend.engine.grammar_queue import MAX_ASKED
from backend.steps import NUM_COMPILED_GRAMMARS
from tests.backend.engine.fake_executor import completion
from tests.backend.engine.test_engine import make_engine, prompt, request, run, tokens


def steps_to(engine: Engine, name: str) -> int:
    """Steps until a request's first token."""
    for count in range(1, 100):
        if any(output.request_id == name and output.token_ids for output in engine.step()):
            return count
    raise AssertionError(f"{name} does not begin")


def add(engine: Engine, name: str, seed: int, grammar: str | None) -> None:
    engine.add_request(request(name, prompt(seed, 20), max_new_tokens=60, ignore_eos=True, grammar=grammar))


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_while_others_run_a_grammar_is_waited_for_and_passed(max_in_flight):
    engine = make_engine(max_in_flight=max_in_flight)
    engine.executor.compile_steps = 6
    add(engine, "running", 1, None)
    steps_to(engine, "running")
    add(engine, "with grammar", 2, "start: /a/")
    add(engine, "free", 3, None)
    assert steps_to(engine, "free") <= max_in_flight
    assert next(iter(engine.scheduler.waiting)).request_id == "with grammar"
    assert steps_to(engine, "with grammar") >= 5
    run(engine)


def test_where_nothing_runs_nobody_waits_for_a_grammar():
    engine = make_engine()
    engine.executor.compile_steps = 50
    add(engine, "a", 1, "start: /a/")
    assert steps_to(engine, "a") == 1


@pytest.mark.parametrize("was_alone", [False, True], ids=["asked for", "used without"])
def test_a_grammar_that_was_compiled_lately_is_not_waited_for_again(was_alone):
    engine = make_engine(num_blocks=200, session_len=1024)
    if not was_alone:
        add(engine, "beside", 1, None)
    add(engine, "first", 2, "start: /a/")
    run(engine)
    engine.executor.compile_steps = 50
    add(engine, "running", 1, None)
    steps_to(engine, "running")
    add(engine, "again", 3, "start: /a/")
    assert steps_to(engine, "again") == 1


def test_compiled_grammars_are_remembered_up_to_a_number_the_last_used_longest():
    engine = make_engine(num_blocks=400, session_len=2048)
    gate = engine.scheduler.grammars
    gate.compiled(f"start: /{index}/" for index in range(NUM_COMPILED_GRAMMARS + 3))
    assert len(gate._compiled) == NUM_COMPILED_GRAMMARS and "start: /2/" not in gate._compiled
    add(engine, "uses the oldest", 1, "start: /3/")
    run(engine)
    gate.compiled(["start: /new/"])
    assert "start: /3/" in gate._compiled and "start: /4/" not in gate._compiled


def test_requests_that_come_and_go_do_not_pile_up_work():
    engine = make_engine(num_blocks=200, session_len=1024)
    engine.executor.compile_steps = 1000
    engine.add_request(request("running", prompt(1, 20), max_new_tokens=900))
    steps_to(engine, "running")
    for index in range(3 * MAX_ASKED):
        add(engine, str(index), 2, f"start: /{index}/")
        engine.step()
        engine.abort(str(index))
    assert len(engine.executor.compiling) <= MAX_ASKED


@pytest.mark.parametrize("compile_steps", [1, 3, 40])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_any_order_of_compilation_gives_every_completion(compile_steps, max_in_flight):
    """Few rows and blocks, so that sequences with and without grammars are preempted, too."""
    engine = make_engine(8, max_in_flight, max_batch_size=6)
    engine.executor.compile_steps = compile_steps
    prompts = {str(index): prompt(index, 20 + index) for index in range(12)}
    for index, (name, ids) in enumerate(prompts.items()):
        grammar = f"start: /{index // 2}/" if index % 3 else None
        engine.add_request(request(name, ids, max_new_tokens=60, grammar=grammar))
    outputs = run(engine)
    assert {name: tokens(outputs[name]) for name in prompts} == {
        name: completion(list(ids), 60) for name, ids in prompts.items()}
    assert engine.scheduler.blocks.num_free == 8 and engine.scheduler.num_preemptions


def test_an_aborted_one_that_waits_for_its_grammar_leaves_nothing():
    engine = make_engine()
    engine.executor.compile_steps = 10
    add(engine, "running", 1, None)
    steps_to(engine, "running")
    add(engine, "waiting", 2, "start: /a/")
    engine.step()
    engine.abort("waiting")
    assert "waiting" in run(engine) and engine.scheduler.blocks.num_free == 64
