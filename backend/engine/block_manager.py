"""Block manager: which physical KV blocks belong to which sequence, and which blocks' contents can be used again.

Owns the free list, the reference counts and the prefix cache (content hash → block). A block whose last user left
keeps its content until the memory is needed, least recently used first. Knows nothing of tensors or of scheduling
order. Used by scheduler.py and session.py through sequences' block tables."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 16  # 2^64 blocks before a chance collision is likely


class BlockManager:
    """num_blocks blocks of block_size tokens, ids 0..num_blocks-1."""

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        # Front is taken first: blocks without reusable content, then the least recently freed.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> tuple[int, ...]:
        """`count` free blocks, whose old contents are forgotten. The caller checked num_free."""
        assert count <= len(self._free), "allocate without checking num_free"
        return tuple(self._take() for _ in range(count))

    def release(self, blocks: Iterable[int]) -> None:
        """Gives up one use of each block, the last block first, so that the front of a prefix stays cached longest."""
        for block in reversed(list(blocks)):
            assert self._ref_counts[block] > 0, f"block {block} released twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)

    def share_prefix(self, token_ids: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """The longest run of cached full blocks with which token_ids begins, now also the caller's.

        At least one token is left out, because a sequence needs the logits of its last one.
        Returns the blocks and their digests."""
        blocks: list[int] = []
        digests: list[bytes] = []
        if not self.enable_prefix_caching:
            return blocks, digests
        for start in range(0, len(token_ids) - self.block_size, self.block_size):
            digest = self.digest(digests[-1] if digests else b"", token_ids[start:start + self.block_size])
            block = self._cached.get(digest)
            if block is None:
                break
            blocks.append(block)
            digests.append(digest)
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1
        return blocks, digests

    def publish(self, block: int, digest: bytes) -> None:
        """A full block's content may be shared from now on. A second block of equal content stays private."""
        if self.enable_prefix_caching and digest not in self._cached and self._digests[block] is None:
            self._cached[digest] = block
            self._digests[block] = digest

    def is_writable(self, block: int) -> bool:
        """Whether its owner may write into it: nobody else uses it and the prefix cache does not name it."""
        return self._ref_counts[block] == 1 and self._digests[block] is None

    def digest(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """Content hash of a full block: its tokens and, through the parent, everything before them."""
        return blake2b(parent + array("I", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()

    def check_integrity(self, block_tables: Iterable[Sequence[int]]) -> None:
        """AssertionError unless the tables of all holders account for every block exactly."""
        users = Counter(block for table in block_tables for block in table)
        for block in range(self.num_blocks):
            assert self._ref_counts[block] == users[block], (
                f"block {block}: {users[block]} users but reference count {self._ref_counts[block]}")
            assert (block in self._free) == (users[block] == 0), f"block {block} is both free and used, or neither"
        assert all(self._digests[block] == digest for digest, block in self._cached.items()), "prefix cache is crooked"
        assert len(self._cached) == sum(digest is not None for digest in self._digests), "prefix cache leaks a digest"

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._digests[block]
        if digest is not None:
            del self._cached[digest]
            self._digests[block] = None
        self._ref_counts[block] = 1
        return block
