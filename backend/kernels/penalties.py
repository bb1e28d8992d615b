"""Penalties in Triton: the logits of tokens that a row has seen are lowered, whatever the vocabulary's size.

A program walks one row's known tokens twice: first each leaves its mark in the row's counts, then whoever takes a
token's mark away lowers its logit, so each does it once and the counts are zero again. Rows without penalties end at
once. Used by worker/sampler.py and worker/cuda_graph.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # tokens at a time
NUM_WARPS = 8
# A token's mark: 1 if the prompt has it, and 2 for each time that the completion has it.
_IN_PROMPT, _IN_COMPLETION = tl.constexpr(1), tl.constexpr(2)


def penalise(logits: Tensor, token_table: Tensor, counts: Tensor, index: Tensor, rows: Tensor, num_prompt: Tensor,
             length: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor) -> None:
    """See sampling_reference.penalise."""
    assert logits.is_contiguous(), logits.stride()
    _penalise_kernel[(len(index),)](
        logits, token_table, counts, index, rows, num_prompt, length, repetition, presence, frequency,
        token_table.stride(0), VOCAB_SIZE=logits.shape[1], TILE=TILE, num_warps=NUM_WARPS)


@triton.jit(do_not_specialize=["table_stride"])
def _penalise_kernel(logits, token_table, counts, index, rows, num_prompt, length, repetition, presence, frequency,
                     table_stride, VOCAB_SIZE: tl.constexpr, TILE: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64)
    num_tokens = tl.load(length + entry)
    if num_tokens == 0:
        return
    tokens = token_table + tl.load(rows + entry) * table_stride
    marks = counts + entry * VOCAB_SIZE
    num_prompt_tokens = tl.load(num_prompt + entry)
    for start in range(0, num_tokens, TILE):
        place = start + tl.arange(0, TILE)
        is_known = place < num_tokens
        token = tl.load(tokens + place, mask=is_known, other=0)
        tl.atomic_or(marks + token, _IN_PROMPT, mask=is_known & (place < num_prompt_tokens))
        tl.atomic_add(marks + token, _IN_COMPLETION, mask=is_known & (place >= num_prompt_tokens))
    tl.debug_barrier()  # every mark is left before the first is taken

    values = logits + tl.load(index + entry) * VOCAB_SIZE
    row_repetition = tl.load(repetition + entry)
    row_presence, row_frequency = tl.load(presence + entry), tl.load(frequency + entry)
    for start in range(0, num_tokens, TILE):
        place = start + tl.arange(0, TILE)
        is_known = place < num_tokens
        token = tl.load(tokens + place, mask=is_known, other=0)
        mark = tl.where(is_known, tl.atomic_xchg(marks + token, 0, mask=is_known), 0)
        count = mark // _IN_COMPLETION
        value = tl.load(values + token, mask=mark > 0, other=0.0)
        value = tl.where(value > 0, tl.div_rn(value, row_repetition), value * row_repetition)
        value -= tl.where(count > 0, row_presence, 0.0) + row_frequency * count.to(tl.float32)
        tl.store(values + token, value, mask=mark > 0)
