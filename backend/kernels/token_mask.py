"""Token mask in Triton: the logits of tokens that a grammar forbids become -inf, read from one bit per token.

Only what is forbidden is written, and no logit is read. Used by worker/sampler.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # tokens of a program
NUM_WARPS = 4


def mask_tokens(logits: Tensor, index: Tensor, bits: Tensor) -> None:
    """See sampling_reference.mask_tokens."""
    assert logits.is_contiguous() and bits.is_contiguous(), (logits.stride(), bits.stride())
    vocab_size = logits.shape[1]
    assert bits.shape == (len(index), triton.cdiv(vocab_size, 32)), bits.shape
    _mask_tokens_kernel[(triton.cdiv(vocab_size, TILE), len(index))](
        logits, index, bits, VOCAB_SIZE=vocab_size, NUM_WORDS=bits.shape[1], TILE=TILE, num_warps=NUM_WARPS)


@triton.jit
def _mask_tokens_kernel(logits, index, bits, VOCAB_SIZE: tl.constexpr, NUM_WORDS: tl.constexpr, TILE: tl.constexpr):
    entry = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_token = token < VOCAB_SIZE
    word = tl.load(bits + entry * NUM_WORDS + token // 32, mask=is_token, other=0)
    is_allowed = (word >> (token % 32)) & 1 == 1
    row = logits + tl.load(index + entry) * VOCAB_SIZE
    tl.store(row + token, float("-inf"), mask=is_token & (is_allowed == 0))
