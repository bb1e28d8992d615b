"""The token mask in Triton against the reference, and the reference against single bits."""

from __future__ import annotations

import pytest
import torch

from backend.kernels import sampling_reference, token_mask


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 4096, 9001])
@pytest.mark.parametrize("kernels", [token_mask, sampling_reference], ids=["triton", "reference"])
def test_tokens_whose_bit_is_not_set_become_minus_infinity_in_the_named_rows(device, kernels, vocab_size):
    logits = torch.randn(5, vocab_size)
    index = torch.tensor([3, 0, 4])
    bits = torch.randint(-(2**31), 2**31, (3, -(-vocab_size // 32)), dtype=torch.int32)
    expected = logits.clone()
    for line, row in zip(bits.tolist(), index.tolist(), strict=True):
        for token in range(vocab_size):
            if not line[token // 32] >> token % 32 & 1:
                expected[row, token] = -torch.inf
    where = device if kernels is token_mask else "cpu"
    logits = logits.to(where)
    kernels.mask_tokens(logits, index.to(where), bits.to(where))
    assert torch.equal(logits.cpu(), expected)


def test_full_and_empty_words_allow_and_forbid_all_of_their_tokens(device):
    logits = torch.zeros(1, 64, device=device)
    token_mask.mask_tokens(logits, torch.zeros(1, dtype=torch.int64, device=device),
                           torch.tensor([[-1, 0]], dtype=torch.int32, device=device))
    assert logits[0, :32].eq(0).all() and logits[0, 32:].eq(-torch.inf).all()
