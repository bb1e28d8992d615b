"""Step plan and step result: the one plain value in which deciding (engine) and executing (worker) meet.

A worker keeps tables with one *row* per running sequence: its token ids, its block table, its sampling state. A plan
only says what changes: which rows begin (RowSetup), and for each row of the step how many tokens are computed and
which blocks were added. Token ids sampled on the device stay there; a decode row needs no ids from the host, which is
what lets the engine plan and launch a step before it has read the previous one.

Picklable, no tensors: tensor parallelism is sending the plan to each rank. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from backend.requests import SamplingParams, TokenLogprobs

NUM_COMPILED_GRAMMARS = 64  # that a rank keeps, the last used ones


@dataclass(frozen=True, slots=True)
class RowSetup:
    """A sequence takes a row; replaces whatever the row's tables held.

    token_ids          prompt and completion so far, all of them known to the host
    num_prompt_tokens  where the completion begins (penalties, min_new_tokens)
    block_table        blocks that it already holds (from the prefix cache or its session)
    end_ids            ids that min_new_tokens masks: the model's end ids and the request's stop ids
    seed               resolved: SamplingParams.seed or one that the engine drew
    prompt_logprobs    alternatives wanted for the prompt's tokens as they are computed; None: none are wanted"""

    row: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    block_table: tuple[int, ...]
    sampling: SamplingParams
    end_ids: tuple[int, ...]
    seed: int
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One row's part in a step: tokens [num_cached, num_cached + num_new) of its token table are computed.

    new_blocks  appended to the row's block table before the step
    samples     the last of these tokens is the last known one: sample its successor into the token table"""

    row: int
    num_cached: int
    num_new: int
    new_blocks: tuple[int, ...]
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. `rows` lists decodes (num_new == 1) first, then prefill chunks.

    grammars  of sequences that wait: to be compiled in the background, and named by a result once they are"""

    step: int
    setups: tuple[RowSetup, ...]
    rows: tuple[ScheduledRow, ...]
    grammars: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(row.num_new for row in self.rows)


@dataclass(frozen=True, slots=True)
class GrammarEnd:
    """Nothing can follow a row's last token: its grammar is complete, or could not be followed any further.

    fault  why it could not; empty where it is complete"""

    fault: str = ""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token sampled for one row; logprobs when its request asked for them.

    grammar_end  the row's grammar ended before this token, which then means nothing"""

    row: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    grammar_end: GrammarEnd | None = None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of a row's prompt tokens from position `first` on, which the step computed the tokens before."""

    row: int
    first: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The tokens of a plan's sampling rows, in the plan's order, and the prompts' logprobs where they are wanted.

    grammars  of this and earlier plans whose compilation has ended since the last result, well or not"""

    step: int
    tokens: tuple[SampledToken, ...]
    prompts: tuple[PromptLogprobs, ...] = ()
    grammars: tuple[str, ...] = ()
