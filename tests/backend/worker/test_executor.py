from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from backend.errors import CapacityError, CheckpointError, ConfigError, EngineDeadError
from backend.requests import SamplingParams
from backend.steps import GrammarEnd, RowSetup, ScheduledRow, StepPlan, StepResult
from backend.text.tokenizer import Tokenizer
from backend.worker import process_executor
from backend.worker.executor import Executor, start_executor
from backend.worker.process_executor import ProcessExecutor
from converter.tokenizer import prepare_tokenizer
from tests.backend.tiny_model import TinySource, tiny_source

PROMPT = tuple(range(3, 40))
LOGPROB_TOLERANCE = 1e-4
LEVEL_TOLERANCE = 0.05  # a sum in another order may round a value to the level beside it
# An odd vocabulary, so that the ranks' parts of it differ, and every option that shards something.
OPTIONS = {"vocab_size": 97, "attention_bias": True, "output_bias": True, "qk_norm": True}


def start(source: TinySource) -> Executor:
    return start_executor(source, source.engine)


def plans(count: int) -> list[StepPlan]:
    """Two sequences: a greedy and a drawn one, the second prefilled in chunks; then decodes."""
    greedy = RowSetup(0, PROMPT, 37, (0, 1, 2, 3), SamplingParams(temperature=0.0, logprobs=97), (2,), 0)
    drawn = RowSetup(1, PROMPT[::-1], 37, (4, 5, 6, 7), SamplingParams(temperature=1.2, logprobs=97), (2,), 5)
    first = StepPlan(0, (greedy, drawn), (ScheduledRow(0, 0, 37, (), True), ScheduledRow(1, 0, 20, (), False)))
    second = StepPlan(1, (), (ScheduledRow(0, 37, 1, (), True), ScheduledRow(1, 20, 17, (), True)))
    decodes = [StepPlan(step, (), (ScheduledRow(0, 36 + step, 1, (), True), ScheduledRow(1, 35 + step, 1, (), True)))
               for step in range(2, count)]
    return [first, second, *decodes]


def run(executor: Executor, count: int) -> list[StepResult]:
    return [executor.launch(plan).wait() for plan in plans(count)]


@pytest.mark.parametrize(("quant_policy", "tolerance"), [(0, LOGPROB_TOLERANCE), (4, LEVEL_TOLERANCE)])
def test_two_ranks_give_the_tokens_and_logprobs_of_one(quant_policy: int, tolerance: float) -> None:
    options = {"quant_policy": quant_policy, **OPTIONS}
    one, two = start(tiny_source(**options)), start(tiny_source(tp=2, **options))
    try:
        assert one.num_blocks == two.num_blocks == 64
        for expected, found in zip(run(one, 12), run(two, 12), strict=True):
            assert [token.token_id for token in found.tokens] == [token.token_id for token in expected.tokens]
            for left, right in zip(found.tokens, expected.tokens, strict=True):  # all 97 logits, normalised
                assert dict(left.logprobs.top) == pytest.approx(dict(right.logprobs.top), abs=tolerance)
    finally:
        one.close()
        two.close()


def test_two_ranks_follow_grammars_alike(tmp_path: Path) -> None:
    """Each makes its own masks; a token on which they differed would change what both compute from then on."""
    prepare_tokenizer(Path(__file__).parents[3] / "demo/checkpoint", tmp_path, None)
    found = []
    for tp in (1, 2):
        source = replace(tiny_source(vocab_size=3072, tp=tp), tokenizer_dir=tmp_path)
        executor = start(source)
        try:
            found.append([executor.launch(plan).wait() for plan in grammar_plans(16)])
        finally:
            executor.close()
    assert found[0] == found[1]
    ended = found[0][-1].tokens[0]
    assert ended.grammar_end == GrammarEnd()
    tokenizer = Tokenizer(tmp_path)
    for row, grammar in ((0, "[a-f]{8}"), (1, "[0-9]+")):
        ids = [token.token_id for result in found[0] for token in result.tokens
               if token.row == row and token.grammar_end is None]
        assert re.fullmatch(grammar, tokenizer.decode(ids))


def grammar_plans(count: int) -> list[StepPlan]:
    """Two drawn sequences: one whose grammar ends and one whose grammar could go on; the id 2 cannot end it."""
    requests = [SamplingParams(temperature=1.2, grammar=f"start: /{grammar}/", ignore_eos=True)
                for grammar in ("[a-f]{8}", "[0-9]+")]
    setups = tuple(RowSetup(row, PROMPT, 37, tuple(range(4 * row, 4 * row + 4)), request, (), row)
                   for row, request in enumerate(requests))
    first = StepPlan(0, setups, tuple(ScheduledRow(row, 0, 37, (), True) for row in range(2)))
    return [first, *(StepPlan(step, (), tuple(ScheduledRow(row, 36 + step, 1, (), True) for row in range(2)))
                     for step in range(1, count))]


@pytest.mark.multi_gpu
def test_two_gpus_give_the_tokens_of_one() -> None:
    options = {"device": "cuda", "dtype": "float32", "head_dim": 64, **OPTIONS}
    one, two = start(tiny_source(**options)), start(tiny_source(tp=2, **options))
    try:
        expected, found = run(one, 20), run(two, 20)
    finally:
        one.close()
        two.close()
    for left, right in zip(found, expected, strict=True):
        assert [token.token_id for token in left.tokens] == [token.token_id for token in right.tokens]


def test_a_killed_rank_ends_the_engine_and_the_other_rank() -> None:
    executor = start(tiny_source(tp=2))
    assert isinstance(executor, ProcessExecutor)
    ranks = [psutil.Process(pid) for pid in executor.pids]
    plan = plans(1)[0]
    executor.launch(plan).wait()
    os.kill(executor.pids[1], signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="rank 1 was killed by SIGKILL"):
        while True:
            executor.launch(plan).wait()
    with pytest.raises(EngineDeadError, match="rank 1 was killed"):
        executor.launch(plan)
    assert psutil.wait_procs(ranks, timeout=5)[1] == []
    executor.close()


def test_a_rank_that_raises_ends_the_engine_with_its_own_line() -> None:
    executor = start(tiny_source(tp=2))
    without_blocks = StepPlan(0, (RowSetup(0, PROMPT, 37, (), SamplingParams(), (2,), 0),),
                              (ScheduledRow(0, 0, 37, (), True),))
    with pytest.raises(EngineDeadError, match=r"rank [01]: AssertionError: a context without blocks"):
        executor.launch(without_blocks).wait()


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """The starter is killed, so nothing can be closed in order."""
    script = ("from tests.backend.worker.test_executor import *\n"
              "executor = start(tiny_source(tp=2)); print(*executor.pids, flush=True)\n"
              "import time; time.sleep(600)\n")
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"TMPDIR": str(tmp_path)})
    ranks = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
    starter.kill()
    starter.wait()
    assert len(ranks) == 2
    assert psutil.wait_procs(ranks, timeout=10)[1] == []


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('the script runs')\n"
                      "from tests.backend.worker.test_executor import *\n"
                      "executor = start(tiny_source(tp=2, device='cpu'))\n"
                      "print(len(executor.pids), 'ranks')\n"
                      "executor.close()\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout == "the script runs\n2 ranks\n"


def test_a_number_of_ranks_that_does_not_work_is_refused_before_any_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_executor, "start_process", None)
    with pytest.raises(ConfigError, match="tp=3 does not divide"):
        start(tiny_source(tp=3))


@dataclass(frozen=True)
class Incomplete(TinySource):
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from list(TinySource.tensors(self))[:-1]


@pytest.mark.parametrize("tp", [1, 2])
def test_a_model_that_cannot_be_loaded_raises_its_own_error(tp: int) -> None:
    tiny = tiny_source(tp=tp)
    with pytest.raises(CheckpointError, match=r"the first is output\.weight"):
        start(Incomplete(tiny.model, tiny.engine))


def test_ranks_that_do_not_meet_in_time_are_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_executor, "CONNECT_LIMIT_S", 0.01)
    with pytest.raises(ConfigError, match=r"did not meet .* within 0.01 s; set NCCL_DEBUG=INFO"):
        start(tiny_source(tp=2))


@pytest.mark.parametrize("tp", [1, 2])
def test_a_cache_that_does_not_fit_is_refused_before_anything_is_loaded(tp: int) -> None:
    class Unreadable(TinySource):
        def tensors(self) -> Iterator[tuple[str, Tensor]]:
            raise AssertionError("weights were read")

    tiny = tiny_source(tp=tp, cache_max_entry_count=10**12)
    source = Unreadable(tiny.model, tiny.engine) if tp == 1 else tiny  # a local class cannot be sent to a process
    with pytest.raises(CapacityError, match=r"KV blocks need .* use cache_max_entry_count=\d+ or less"):
        start(source)


def test_a_closed_executor_refuses_plans() -> None:
    executor = start(tiny_source())
    executor.close()
    executor.close()
    with pytest.raises(EngineDeadError, match="closed"):
        executor.launch(plans(1)[0])
