"""Sessions: chats whose sequence stays idle between turns, KV kept while there is memory.

Owns what each session remembers: its tokens for as long as it lives, its blocks until they are needed elsewhere. An
evicted session keeps its tokens and is computed again, unnoticed, when it comes back. Used by engine.py (turns) and
scheduler.py (evictions)."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from time import monotonic

from backend.engine.block_manager import BlockManager
from backend.engine.sequence import Sequence
from backend.errors import SessionError, UnknownSessionError
from backend.requests import GenerateRequest

MAX_TOKENS = 32 * 2**20  # that all sessions remember together, 4 bytes each


@dataclass(slots=True)
class Session:
    """seed: the last one that a request gave; later turns go on with it.
    running: the request that has the turn; once it computes, its sequence has the blocks and the session none.
    answered: the request whose answer the tokens end with, after num_prompt_tokens of them."""

    token_ids: array[int] = field(default_factory=lambda: array("I"))
    block_table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_cached: int = 0
    seed: int | None = None
    running: str | None = None
    answered: str | None = None
    num_prompt_tokens: int = 0
    is_ended: bool = False
    idle_since_s: float = 0.0


class SessionTable:
    """All sessions by id; idle ones are evicted least recently used first.

    States and what each allows (docs/serving.md has the table): idle (a turn, a stop that forgets, an end), running
    (a stop, an end after the turn), evicted (like idle; its blocks are gone, its tokens not), unknown (a start)."""

    def __init__(self, blocks: BlockManager, max_tokens: int = MAX_TOKENS) -> None:
        """max_tokens: that sessions remember together; beyond it the idle ones used longest ago are forgotten."""
        self._blocks = blocks
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._sessions: OrderedDict[int, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: int) -> bool:
        return session_id in self._sessions

    def history(self, request: GenerateRequest) -> list[int]:
        """The tokens before this request's turn. Changes nothing.

        Raises SessionError while another turn runs, for a session that has to exist and does not, or has to be new and
        is not, or where session_step is beyond its end."""
        if request.session_id is None:
            return []
        session = self._sessions.get(request.session_id)
        if session is not None and session.running is not None:
            raise SessionError(f"session {request.session_id} is busy with another turn; wait for its end or stop it",
                               "session_id")
        if session is None and request.session_start is False:
            raise _unknown(request.session_id)
        if session is not None and request.session_is_new:
            raise SessionError(f"session {request.session_id} is under way, so it takes one new message and no new "
                               "tools; start it afresh, or end it")
        token_ids = session.token_ids if session is not None and not request.session_start else array("I")
        step = request.session_step
        if step is not None and not 0 <= step <= len(token_ids):
            raise SessionError(f"session {request.session_id} holds {len(token_ids)} tokens, "
                               f"so step={step} cannot be reached; use 0..{len(token_ids)}", "step")
        return token_ids[:step].tolist()

    def begin_turn(self, request: GenerateRequest) -> None:
        """The request has the session's turn from now on; its blocks stay here, and evictable, until it runs."""
        session = self._sessions.setdefault(request.session_id, Session())
        self._sessions.move_to_end(request.session_id)
        session.running = request.request_id
        if request.sampling.seed is not None or request.session_start:
            session.seed = request.sampling.seed
        session.is_ended = request.end_session

    def seed(self, request: GenerateRequest) -> int | None:
        """The seed with which a turn that gives none goes on."""
        session = self._sessions.get(request.session_id) if request.session_id is not None else None
        return None if session is None or request.session_start else session.seed

    def running_request(self, session_id: int) -> str | None:
        """The request that has the turn; None for an idle session. Raises SessionError for an unknown one."""
        session = self._sessions.get(session_id)
        if session is None:
            raise _unknown(session_id)
        return session.running

    def lend_blocks(self, sequence: Sequence, num_history_tokens: int) -> None:
        """Hands the session's blocks to the sequence that is about to run, as far as its history agrees with them."""
        session = self._sessions[sequence.session_id]
        sequence.block_table, sequence.digests = session.block_table, session.digests
        sequence.num_cached = session.num_cached
        session.block_table, session.digests, session.num_cached = [], [], 0
        # The last token is computed again even where its KV is stored: its logits are wanted.
        keep_first(sequence, min(num_history_tokens, len(sequence.token_ids) - 1), self._blocks)

    def return_blocks(self, sequence: Sequence) -> None:
        """Undoes lend_blocks for a sequence that could not run yet."""
        session = self._sessions[sequence.session_id]
        session.block_table, session.digests = sequence.block_table, sequence.digests
        session.num_cached = sequence.num_cached
        sequence.block_table, sequence.digests, sequence.num_cached = [], [], 0

    def end_turn(self, sequence: Sequence) -> None:
        """Takes tokens and blocks back from a finished sequence; releases them where the session has ended.

        The id that ended the answer is forgotten. A turn that never ran leaves the session as it was: unknown, if it
        was its first."""
        session = self._sessions[sequence.session_id]
        session.running, session.idle_since_s = None, monotonic()
        if sequence.was_admitted:
            end = len(sequence.token_ids) - sequence.forgets_last
            keep_first(sequence, end, self._blocks)
            self._remember(session, array("I", sequence.token_ids[:end]))
            session.answered, session.num_prompt_tokens = sequence.request_id, sequence.num_prompt_tokens
            self.return_blocks(sequence)
        if session.is_ended or not session.token_ids:
            self._forget(sequence.session_id)
        self._make_room()

    def cut_answer(self, session_id: int, request_id: str, num_completion_tokens: int) -> None:
        """Of this request's answer an idle session keeps only so many tokens; no effect once it has gone on, or ended.

        The text that cuts an answer is found later than the engine's own reasons to end it."""
        session = self._sessions.get(session_id)
        if session is not None and session.running is None and session.answered == request_id:
            end = session.num_prompt_tokens + num_completion_tokens
            keep_first(session, end, self._blocks)
            self._remember(session, session.token_ids[:end])

    def end(self, session_id: int) -> None:
        """Forgets an idle session; one that runs is forgotten when its turn ends. Raises SessionError if unknown."""
        if self.running_request(session_id) is None:
            self._forget(session_id)
        else:
            self._sessions[session_id].is_ended = True

    def expire(self, ttl_s: float) -> None:
        """Forgets the sessions that have been idle for longer, the least recently used first."""
        deadline = monotonic() - ttl_s
        while self._sessions:
            session_id, session = next(iter(self._sessions.items()))
            if session.running is not None or session.idle_since_s > deadline:
                return  # younger ones may have expired too; they wait for their turn
            self.end(session_id)

    def _remember(self, session: Session, token_ids: array[int]) -> None:
        self._num_tokens += len(token_ids) - len(session.token_ids)
        session.token_ids = token_ids

    def _forget(self, session_id: int) -> None:
        session = self._sessions.pop(session_id)
        self._num_tokens -= len(session.token_ids)
        self._blocks.release(session.block_table)

    def _make_room(self) -> None:
        if self._num_tokens <= self._max_tokens:
            return
        for session_id in [each for each, session in self._sessions.items() if session.running is None]:
            if self._num_tokens <= self._max_tokens:
                return
            self._forget(session_id)

    def evict_one(self) -> bool:
        """Gives up the blocks of the session that was used longest ago; its tokens stay. False if none holds any."""
        for session in self._sessions.values():
            if session.block_table:
                self._blocks.release(session.block_table)
                session.block_table, session.digests, session.num_cached = [], [], 0
                return True
        return False

    def block_tables(self) -> list[list[int]]:
        return [session.block_table for session in self._sessions.values()]


def _unknown(session_id: int) -> UnknownSessionError:
    return UnknownSessionError(f"session {session_id} is not known: it was never started, or has ended or expired; "
                               "start it", "session_id")


def keep_first(sequence: Sequence | Session, num_tokens: int, blocks: BlockManager) -> None:
    """Of what is cached, the sequence keeps the first num_tokens tokens; blocks beyond them are released.

    A block that ends up partly used is kept only if it may be written to; otherwise its tokens are computed again."""
    num_cached = min(sequence.num_cached, num_tokens)
    num_full, rest = divmod(num_cached, blocks.block_size)
    keep = num_full
    if rest and blocks.is_writable(sequence.block_table[num_full]):
        keep += 1
    else:
        num_cached = num_full * blocks.block_size
    blocks.release(sequence.block_table[keep:])
    sequence.block_table = sequence.block_table[:keep]
    sequence.digests = sequence.digests[:num_full]
    sequence.num_cached = num_cached
