from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from backend.errors import CapacityError, RequestError
from backend.text import grammar_check
from backend.text.grammar import json_object_grammar, json_schema_grammar, regex_grammar
from backend.text.grammar_check import GrammarChecker
from converter.tokenizer import prepare_tokenizer
from tests.backend.text.conftest import DEMO

NEVER_ENDS = json_schema_grammar({"type": "integer", "multipleOf": 123456789})
OVERFLOWS = "\n".join(["start: r0", *(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(5000)), 'r5000: "b"'])
DEEP_REFERENCES = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, 25)}


@pytest.fixture(scope="module")
def demo_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    prepare_tokenizer(DEMO, folder, None)
    return folder


@pytest.fixture(scope="module")
def checker(demo_tokenizer_dir: Path) -> Iterator[GrammarChecker]:
    checker = GrammarChecker(demo_tokenizer_dir, 3072)
    yield checker
    process = checker._process
    checker.close()
    assert process.exitcode == 0


@pytest.mark.parametrize("schema", [
    {"type": "object"}, {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}},
    {"enum": [f"value number {index} of many" for index in range(20_000)]},
    {"type": "string", "pattern": "^(a+)+$"}, {"type": "string", "minLength": 1000, "maxLength": 100_000},
    {"$defs": {"d0": {"type": "object", "properties": {"v": {"type": "string"}}}, **DEEP_REFERENCES},
     "$ref": "#/$defs/d24"},
    {"type": "object", "properties": {f"property_{index}": {"type": ["int", "string"]} for index in range(300)}},
], ids=lambda schema: json.dumps(schema)[:60])
def test_what_can_be_followed_passes(checker, schema):
    checker.check(json_schema_grammar(schema))
    checker.check(json_schema_grammar(schema))


@pytest.mark.parametrize(("grammar", "words"), [
    (NEVER_ENDS, "too complex to be compiled"), (OVERFLOWS, "too complex to be compiled"),
    (json_schema_grammar({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(10)]}
                                    for i in range(10)]}), "schema too large"),
    (json_schema_grammar({"type": "object", "properties": {f"p{i}": {"type": "int"} for i in range(5000)}}),
     "too complex"),
    (json_schema_grammar({"type": "string", "pattern": "(.{1,1000}){1,1000}"}), "too complex to be followed"),
    (json_schema_grammar({"$ref": "#"}), "allows no answer at all"),
    (regex_grammar(r"[^\s\S]"), "allows no answer at all"),
    (json_schema_grammar({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
     "does not work: oneOf works only where .*; use anyOf$"),
    (json_schema_grammar({"type": "wizard"}), "does not work: Invalid type: wizard$"),
    (json_schema_grammar({"$ref": "https://example.com/schema.json"}), "does not fetch"),
    ("start: " + "(" * 100_000 + '"a"' + ")" * 100_000, "nested"),
    ("start: X\nX: A & B & ~C\nA: /(.*a.{20}){3}/\nB: /(.*b.{20}){3}/\nC: /.*c.{30}d.*/", "fuel|complex"),
    ("start: " + " | ".join(f'"choice {i}"' for i in range(60_000)), "too complex|longer"),
    ("x" * 2_000_000, "longer than"), ("start: \ud800", "lone surrogate"),
], ids=lambda value: str(value)[:40])
def test_what_explodes_is_refused_and_the_next_check_works(checker, grammar, words):
    with pytest.raises(RequestError, match=words):
        checker.check(grammar)
    checker.check(f'start: "{hash(grammar)}"')


def test_what_took_too_long_is_tried_again_later(checker, monkeypatch):
    grammar = NEVER_ENDS.replace("123456789", "323456789")
    with pytest.raises(RequestError):
        checker.check(grammar)
    monkeypatch.setattr(checker, "_verdict", lambda text: ("", math.inf))
    with pytest.raises(RequestError):
        checker.check(grammar)
    now_s = time.monotonic()
    monkeypatch.setattr(grammar_check.time, "monotonic", lambda: now_s + grammar_check.REFUSED_FOR_S + 1)
    checker.check(grammar)


def test_a_checker_that_cannot_start_blames_no_grammar(tmp_path):
    checker = GrammarChecker(tmp_path, 3072)
    for _ in range(2):
        with pytest.raises(CapacityError, match="try again later"):
            checker.check('start: "a"')
    checker.close()


def test_a_refused_grammar_is_not_tried_again(checker, monkeypatch):
    for _ in range(2):
        with pytest.raises(RequestError, match="too complex to be compiled"):
            checker.check(OVERFLOWS)
        monkeypatch.setattr(checker, "_verdict", None)


def test_checks_run_side_by_side(checker):
    endless = [NEVER_ENDS.replace("123456789", str(123456789 + index)) for index in range(1, 5)]
    with ThreadPoolExecutor(8) as threads:
        refused = [threads.submit(checker.check, grammar) for grammar in endless]
        passed = [threads.submit(checker.check, f'start: "side by side {index}"') for index in range(4)]
        assert all(isinstance(check.exception(), RequestError) for check in refused)
        assert not any(check.exception() for check in passed)


def test_more_checks_than_a_machine_should_do_at_a_time_are_refused(checker, monkeypatch):
    is_checking, may_go_on = threading.Event(), threading.Event()

    def wait(text: bytes) -> tuple[str, float]:
        is_checking.set()
        may_go_on.wait()
        return "", math.inf

    monkeypatch.setattr(checker, "_pending", threading.BoundedSemaphore(1))
    monkeypatch.setattr(checker, "_verdict", wait)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(checker.check, 'start: "first"')
        is_checking.wait()
        with pytest.raises(CapacityError, match="try again later"):
            checker.check('start: "second"')
        may_go_on.set()
        assert first.result() is None


def test_a_checker_that_was_killed_is_started_again(checker):
    checker.check('start: "before"')
    process = checker._process
    os.kill(process.pid, 9)
    process.join()
    checker.check('start: "after"')
    assert checker._process.pid != process.pid


def test_no_child_outlives_its_time(checker):
    with pytest.raises(RequestError):
        checker.check(NEVER_ENDS.replace("123456789", "223456789"))
    _, alive = psutil.wait_procs(psutil.Process(checker._process.pid).children(), timeout=10)
    assert not alive
    assert grammar_check.WALL_LIMIT_S < 1


def test_the_common_grammars_pass(checker):
    checker.check(json_object_grammar())
