"""Compiles the Triton kernels, as they are launched, for a GPU that need not be there.

    python -m tests.backend.kernels.compile_for 89

prints {kernel: bytes of shared memory}. Launches go no further than the compiler; a process of its own, because
Triton's interpreter is chosen when Triton is imported. Used by test_compile.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from backend.kernels import (
    activation,
    decode_attention,
    kv_store,
    matvec,
    penalties,
    prefill_attention,
    rms_norm,
    sampling,
    token_mask,
    w4_triton,
    w4_weight,
)
from backend.kv_format import KvFormat
from tests.backend.kernels.paged_batch import poisoned_cache

HEAD_SHAPES = ((128, 32, 8), (64, 8, 8), (256, 4, 1))  # head_dim, heads, KV heads
ROWS, VOCAB_SIZE, HIDDEN = 3, 32000, 4096


class CompilerOnly:
    """What Triton asks its driver before a launch."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, warp_size=32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int) -> None:
    triton.runtime.driver.set_active(CompilerOnly(capability))
    shared_bytes: dict[str, int] = {}

    def compiled(kernel: JITFunction, grid: object) -> Callable[..., None]:
        def launch(*arguments: object, **options: object) -> None:
            name, metadata = kernel.__name__, kernel.run(*arguments, grid=grid, warmup=True, **options).metadata
            shared_bytes[name] = max(metadata.shared, shared_bytes.get(name, 0))

        return launch

    JITFunction.__getitem__ = compiled
    with torch.inference_mode():
        for head_dim, num_heads, num_kv_heads in HEAD_SHAPES:
            for kv in (KvFormat.AS_MODEL, KvFormat.INT4):
                attend(head_dim, num_heads, num_kv_heads, kv)
        compute_rows()
    print(json.dumps(shared_bytes))


def attend(head_dim: int, num_heads: int, num_kv_heads: int, kv: KvFormat) -> None:
    """Rows of one token, as a decode and as a prefill."""
    q, k = (torch.zeros(ROWS, heads, head_dim).bfloat16() for heads in (num_heads, num_kv_heads))
    cache = poisoned_cache(kv, 4, num_kv_heads, 64, head_dim, torch.bfloat16, torch.Generator())
    positions, cos_sin = torch.zeros(ROWS).long(), torch.zeros(16, 2, head_dim // 2)
    tables, lens = torch.zeros(ROWS, 4).int(), torch.ones(ROWS).int()
    kv_store.rotary_and_store(q, k, k, positions, cos_sin, cache, positions)
    decode_attention.paged_decode(q, k, k, positions, cos_sin, cache, positions, tables, lens, 1.0)
    prefill_attention.paged_prefill(q, cache, tables, lens, torch.arange(ROWS + 1).int(), 1.0, 1, 1, ROWS)


def compute_rows() -> None:
    """A linear layer of one token with everything that is fused into it, norm, activation, mask, penalties and draw."""
    x, weight = torch.zeros(1, HIDDEN).bfloat16(), torch.zeros(8, HIDDEN).bfloat16()
    matvec.matvec(x, weight, weight[:, 0].contiguous(), norm=(x[0], 1e-5), is_gated=True,
                  residual=torch.zeros(1, 4).bfloat16(), dtype=torch.bfloat16)
    w4 = w4_weight.W4Weight(torch.zeros(1, HIDDEN // 128, w4_weight.piece_bytes(32)).byte(), HIDDEN, 16, 32)
    for tokens in (x, x.expand(w4_triton.MAX_TOKENS, HIDDEN)):
        w4_triton.matmul(tokens, w4)
    w4_triton.dequantise(w4, 0, torch.zeros(16, HIDDEN).bfloat16())
    rms_norm.rms_norm(x, x[0], 1e-5)
    activation.silu_and_mul(x)
    logits, table = torch.zeros(ROWS, VOCAB_SIZE), torch.zeros(ROWS, 8).int()
    floats, ints, longs = torch.zeros(ROWS), torch.zeros(ROWS).int(), torch.zeros(ROWS).long()
    token_mask.mask_tokens(logits, longs, torch.zeros(ROWS, VOCAB_SIZE // 32).int())
    sampling.draw(logits, floats, ints, floats, floats, longs, table, longs)
    penalties.penalise(logits, table, logits.int(), longs, longs, ints, ints, floats, floats, floats)


if __name__ == "__main__":
    main(int(sys.argv[1]))
