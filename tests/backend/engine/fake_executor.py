"""An executor without a model: it keeps the worker's row tables, checks every plan against them, and "samples" the next
token of a fixed function of all tokens before it, so that any schedule has to give the same completion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from backend.requests import TokenLogprobs
from backend.steps import PromptLogprobs, RowSetup, SampledToken, ScheduledRow, StepPlan, StepResult

VOCAB_SIZE = 97
EOS = 1


def next_token(token_ids: list[int]) -> int:
    """What the fake model says after token_ids; EOS about once in twenty."""
    state = 7
    for token_id in token_ids:
        state = (state * 31 + token_id + 1) % 1_000_003
    return EOS if state % 20 == 0 else 2 + state % (VOCAB_SIZE - 2)


def completion(prompt: list[int], max_new_tokens: int) -> list[int]:
    """The tokens that any engine over this executor has to generate."""
    token_ids = list(prompt)
    while len(token_ids) - len(prompt) < max_new_tokens:
        token_ids.append(next_token(token_ids))
        if token_ids[-1] == EOS:
            break
    return token_ids[len(prompt):]


@dataclass
class Row:
    setup: RowSetup
    token_ids: list[int]
    block_table: list[int]


@dataclass
class Handle:
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


@dataclass
class FakeExecutor:
    """stored[block, offset] is the prefix whose KV is there; reading anything else is an AssertionError.

    compile_steps  after how many steps a grammar that a plan asks for is compiled;  compiling: steps that are left"""

    num_blocks: int
    block_size: int
    max_in_flight: int = 1
    rows: dict[int, Row] = field(default_factory=dict)
    stored: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    num_computed: int = 0
    largest_step: int = 0
    compile_steps: int = 1
    compiling: dict[str, int] = field(default_factory=dict)

    def launch(self, plan: StepPlan) -> Handle:
        for setup in plan.setups:
            self.rows[setup.row] = Row(setup, list(setup.token_ids), list(setup.block_table))
        assert len({row.row for row in plan.rows}) == len(plan.rows)
        assert [row.num_new > 1 for row in plan.rows] == sorted(row.num_new > 1 for row in plan.rows)
        self.largest_step = max(self.largest_step, plan.num_tokens)
        for scheduled in plan.rows:
            self.rows[scheduled.row].block_table.extend(scheduled.new_blocks)
        # As each layer does: prefill rows are stored, then decode rows store and read side by side, then prefills read.
        decodes = [scheduled for scheduled in plan.rows if scheduled.num_new == 1]
        prefills = [scheduled for scheduled in plan.rows if scheduled.num_new > 1]
        self._store(prefills)
        for scheduled in decodes:
            self._read(scheduled, scheduled.num_cached)
        self._store(decodes)
        for scheduled in prefills:
            self._read(scheduled, scheduled.num_cached + scheduled.num_new)
        tokens = []
        for scheduled in plan.rows:
            row = self.rows[scheduled.row]
            end = scheduled.num_cached + scheduled.num_new
            if scheduled.samples:
                assert end == len(row.token_ids), "sampling before the last known token was computed"
                token_id = next_token(row.token_ids)
                row.token_ids.append(token_id)
                wanted = row.setup.sampling.logprobs is not None
                tokens.append(SampledToken(scheduled.row, token_id, TokenLogprobs(token_id, -1.0) if wanted else None))
        return Handle(StepResult(plan.step, tuple(tokens), tuple(self._prompts(plan)), self._compiled(plan)))

    def _compiled(self, plan: StepPlan) -> tuple[str, ...]:
        assert not set(plan.grammars) & set(self.compiling), "asked for twice"
        self.compiling.update(dict.fromkeys(plan.grammars, self.compile_steps))
        self.compiling = {grammar: left - 1 for grammar, left in self.compiling.items()}
        compiled = tuple(grammar for grammar, left in self.compiling.items() if not left)
        self.compiling = {grammar: left for grammar, left in self.compiling.items() if left}
        return compiled

    def _prompts(self, plan: StepPlan) -> Iterator[PromptLogprobs]:
        """The "logprob" of a prompt's token is minus its position."""
        for scheduled in plan.rows:
            setup, first = self.rows[scheduled.row].setup, scheduled.num_cached + 1
            last = min(first + scheduled.num_new, setup.num_prompt_tokens)
            if setup.prompt_logprobs is not None and first < last:
                yield PromptLogprobs(scheduled.row, first, tuple(
                    TokenLogprobs(setup.token_ids[position], -position) for position in range(first, last)))

    def close(self) -> None:
        pass

    def _store(self, scheduled_rows: list[ScheduledRow]) -> None:
        for scheduled in scheduled_rows:
            row = self.rows[scheduled.row]
            for position in range(scheduled.num_cached, scheduled.num_cached + scheduled.num_new):
                self.stored[self._slot(row, position)] = tuple(row.token_ids[:position + 1])
                self.num_computed += 1

    def _read(self, scheduled: ScheduledRow, num_tokens: int) -> None:
        row = self.rows[scheduled.row]
        for position in range(num_tokens):
            assert self.stored.get(self._slot(row, position)) == tuple(row.token_ids[:position + 1]), (
                f"row {scheduled.row} reads KV at {position} that is not its own")

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        return row.block_table[position // self.block_size], position % self.block_size
