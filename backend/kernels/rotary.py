"""Rotary embedding in Triton: heads rotated as they are loaded, half-split as in Hugging Face (Su et al., 2021).

A head's value d is turned with the value R/2 away from it; both are loaded, the second from the cache line of the
first, so that a rotated head needs no second tile. Used by decode_attention.py and kv_store.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_angles(cos_sin, position, column, HALF: tl.constexpr):
    """Factors [columns] of a value and of its partner, from the table cos_sin [P, 2, R/2]; HALF is R/2.

    The second is negative in the first half of the rotated values. Beyond R they are 1 and 0."""
    rotates = column < 2 * HALF
    angles = cos_sin + position * 2 * HALF + column % HALF
    cos = tl.load(angles, mask=rotates, other=1.0)
    sin = tl.load(angles + HALF, mask=rotates, other=0.0)
    return cos, tl.where(column < HALF, -sin, sin)


@triton.jit
def load_rotated(heads, column, inside, cos, sin, HALF: tl.constexpr):
    """Rotated heads [heads, columns] in the dtype in which they lie at the pointers heads [heads, 1]; 0 outside."""
    partner = (column + HALF) % (2 * HALF)
    value = tl.load(heads + column[None, :], mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    other = tl.load(heads + partner[None, :], mask=inside & (column < 2 * HALF)[None, :], other=0.0,
                    cache_modifier=".cg").to(tl.float32)
    return (value * cos[None, :] + other * sin[None, :]).to(heads.dtype.element_ty)
