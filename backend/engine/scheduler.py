"""Scheduler: which tokens of which sequences the next step computes, and who gives way when memory is short.

Owns the queue, the running list and the rows of the persistent batch. A step holds every running sequence's next token
(decode) and up to max_prefill_tokens prompt tokens (chunks of running, then of newly admitted sequences). When blocks
run out, idle sessions are evicted first, then the youngest running sequence is preempted: its blocks are freed and it
is computed again later. Knows no torch. Used by engine.py."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from backend.config import EngineConfig
from backend.engine.block_manager import BlockManager
from backend.engine.grammar_queue import GrammarQueue
from backend.engine.sequence import Sequence, SequenceStatus
from backend.engine.session import SessionTable
from backend.memory_plan import blocks_of
from backend.steps import RowSetup, ScheduledRow, StepPlan

# How far down the queue grammars are compiled ahead, and who may pass those that wait for theirs.
LOOK_AHEAD = 32


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A plan and, aligned with plan.rows, the sequences it moves."""

    plan: StepPlan
    sequences: tuple[Sequence, ...]


class Scheduler:
    def __init__(self, config: EngineConfig, num_blocks: int) -> None:
        self.blocks = BlockManager(num_blocks, config.block_size, config.enable_prefix_caching)
        self.sessions = SessionTable(self.blocks)
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()  # a dict: whoever is aborted leaves without a search
        self.running: list[Sequence] = []  # in order of admission: the last one is preempted first
        self.grammars = GrammarQueue()
        self.num_preemptions = 0
        self._max_prefill_tokens = config.max_prefill_tokens
        self._free_rows = list(reversed(range(config.max_batch_size)))
        self.num_steps = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting[sequence] = None

    @property
    def num_queued(self) -> int:
        """Sequences that wait for a row, without those for which there is one already, from the next step on."""
        return max(len(self.waiting) - len(self._free_rows), 0)

    def schedule(self) -> ScheduledStep | None:
        """The next step, its blocks taken and its sequences moved on; None when there is nothing to compute."""
        budget = self._max_prefill_tokens
        num_preemptions = self.num_preemptions
        entries: dict[Sequence, ScheduledRow] = {}
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING or sequence.wants_no_more:
                continue
            num_uncomputed = sequence.num_uncomputed
            num_new = 1 if num_uncomputed == 1 else min(num_uncomputed, budget)
            num_blocks = self._num_new_blocks(sequence, num_new)
            if num_new and (not num_blocks or self._make_room(sequence, num_blocks)):
                entries[sequence] = self._advance(sequence, num_new, num_blocks)
                budget -= num_new if num_new > 1 else 0
        setups: list[RowSetup] = []
        # Whoever has just been preempted must not push out, by coming back at once, what it gave way to.
        while self.waiting and budget and self._free_rows and self.num_preemptions == num_preemptions:
            sequence = self._next_waiting()
            if sequence is None or sequence.num_pending or not self._admit(sequence):
                break
            del self.waiting[sequence]
            self.grammars.used(sequence)
            self.running.append(sequence)
            setups.append(_setup(sequence))
            num_new = min(sequence.num_uncomputed, budget)
            entries[sequence] = self._advance(sequence, num_new, self._num_new_blocks(sequence, num_new))
            budget -= num_new
        if not entries:
            return None
        decodes_first = sorted(entries, key=lambda sequence: entries[sequence].num_new > 1)
        self.num_steps += 1
        plan = StepPlan(self.num_steps, tuple(setups), tuple(entries[sequence] for sequence in decodes_first),
                        self.grammars.ask(islice(self.waiting, LOOK_AHEAD)))
        return ScheduledStep(plan, tuple(decodes_first))

    def remove(self, sequence: Sequence) -> None:
        """The sequence is finished or aborted: its row is free, its blocks go back to its session or to all."""
        if sequence.status is SequenceStatus.WAITING:
            del self.waiting[sequence]
        else:
            self.running.remove(sequence)
            self._release_row(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.num_cached = min(sequence.num_cached, len(sequence.token_ids))
        if sequence.session_id is not None:
            self.sessions.end_turn(sequence)
        else:
            self.blocks.release(sequence.block_table)
            sequence.block_table = []

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence gives up row and blocks, and is computed again from its tokens when there is room."""
        self.num_preemptions += 1
        sequence.times.preempted()
        self.running.remove(sequence)
        self._release_row(sequence)
        self._drop_blocks(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting[sequence] = None
        self.waiting.move_to_end(sequence, last=False)

    def check_integrity(self) -> None:
        """AssertionError unless every block and row is accounted for."""
        holders = [sequence.block_table for sequence in (*self.running, *self.waiting)]
        self.blocks.check_integrity([*holders, *self.sessions.block_tables()])
        rows = [sequence.row for sequence in self.running]
        assert len(set(rows) | set(self._free_rows)) == len(rows) + len(self._free_rows), "a row is used twice"

    def _next_waiting(self) -> Sequence | None:
        """The first that need not wait for its grammar; where nothing runs, nobody is kept waiting by it."""
        if not self.running:
            return next(iter(self.waiting))
        return next((sequence for sequence in islice(self.waiting, LOOK_AHEAD)
                     if not self.grammars.holds_back(sequence)), None)

    def _admit(self, sequence: Sequence) -> bool:
        """Gives the sequence a row and what is cached of it, if the rest of its known text fits."""
        resumes = sequence.session_id is not None and not sequence.was_admitted
        if resumes:
            self.sessions.lend_blocks(sequence, sequence.num_history_tokens)
        if not sequence.block_table:
            resumes = False
            if not sequence.needs_whole_prompt:
                sequence.block_table, sequence.digests = self.blocks.share_prefix(sequence.token_ids)
            sequence.num_cached = len(sequence.block_table) * self.blocks.block_size
        needed = self._num_new_blocks(sequence, sequence.num_uncomputed)
        if needed + len(self.running) > self.blocks.num_free:
            # Those that run are left a block to grow into: who comes when they are short is preempted in a moment.
            needed += sum(self._can_grow(running) for running in self.running)
        while needed > self.blocks.num_free and self.sessions.evict_one():
            pass
        if needed > self.blocks.num_free:
            if resumes:
                self.sessions.return_blocks(sequence)
            else:
                self._drop_blocks(sequence)
            return False
        sequence.row = self._free_rows.pop()
        sequence.status = SequenceStatus.RUNNING
        sequence.times.admitted()
        if not sequence.was_admitted:
            sequence.num_cached_prompt_tokens = sequence.num_cached
        return True

    def _make_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """Frees blocks until there are as many for the sequence; False if the sequence itself had to give way.

        Only sequences younger than it, so not yet part of this step, can be preempted for it."""
        while num_blocks > self.blocks.num_free:
            if not self.sessions.evict_one():
                victim = self.running[-1]
                self.preempt(victim)
                if victim is sequence:
                    return False
        return True

    def _advance(self, sequence: Sequence, num_new: int, num_blocks: int) -> ScheduledRow:
        new_blocks = self.blocks.allocate(num_blocks) if num_blocks else ()
        sequence.block_table.extend(new_blocks)
        num_cached = sequence.num_cached
        sequence.num_cached += num_new
        samples = sequence.num_uncomputed == 0 and sequence.max_new_tokens > 0
        sequence.num_pending += samples
        if num_new > 1:
            self.publish_full_blocks(sequence)
        return ScheduledRow(sequence.row, num_cached, num_new, new_blocks, samples)

    def publish_full_blocks(self, sequence: Sequence) -> None:
        """Makes full blocks shareable whose tokens are known and which a launched step computes.

        Steps run in order, and each layer stores the new KV of all prefill rows before it reads any, so sequences of
        the same step may share what a prefill row fills. Decode rows store and read in one kernel, side by side: what
        one of them fills is published when its token is read, and shared from the next step on."""
        size = self.blocks.block_size
        if not self.blocks.enable_prefix_caching:
            return
        for index in range(len(sequence.digests), min(sequence.num_cached, len(sequence.token_ids)) // size):
            parent = sequence.digests[-1] if sequence.digests else b""
            digest = self.blocks.digest(parent, sequence.token_ids[index * size:(index + 1) * size])
            sequence.digests.append(digest)
            self.blocks.publish(sequence.block_table[index], digest)

    def _can_grow(self, sequence: Sequence) -> bool:
        """Whether its blocks do not hold all that it may become."""
        most = sequence.num_prompt_tokens + sequence.max_new_tokens
        return blocks_of(most, self.blocks.block_size) > len(sequence.block_table)

    def _num_new_blocks(self, sequence: Sequence, num_new: int) -> int:
        return blocks_of(sequence.num_cached + num_new, self.blocks.block_size) - len(sequence.block_table)

    def _drop_blocks(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table, sequence.digests, sequence.num_cached = [], [], 0

    def _release_row(self, sequence: Sequence) -> None:
        self._free_rows.append(sequence.row)
        sequence.row = None


def _setup(sequence: Sequence) -> RowSetup:
    return RowSetup(sequence.row, tuple(sequence.token_ids), sequence.num_prompt_tokens, tuple(sequence.block_table),
                    sequence.sampling, tuple(sequence.end_ids), sequence.seed,
                    sequence.wanted_prompt_logprobs if sequence.needs_whole_prompt else None)
