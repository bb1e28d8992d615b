"""Penalties in Triton against the reference, and the reference against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.kernels import penalties, sampling_reference

COUNTS_ROWS = 6


def arguments(vocab_size: int, longest: int) -> dict[str, Tensor]:
    """Four entries of seven rows; the third penalises nothing. The last table row holds one token again and again."""
    table = torch.randint(0, vocab_size // 3, (9, longest + 5), dtype=torch.int32)
    table[4] = 7
    lengths = (longest, longest // 2, 0, longest // 3)
    return {
        "logits": torch.randn(7, vocab_size), "token_table": table,
        "counts": torch.zeros(COUNTS_ROWS, vocab_size, dtype=torch.int32), "index": torch.tensor([5, 0, 3, 2]),
        "rows": torch.tensor([8, 2, 0, 4]), "num_prompt": torch.tensor([longest // 2, 0, 0, 5], dtype=torch.int32),
        "length": torch.tensor(lengths, dtype=torch.int32), "repetition": torch.tensor([1.3, 0.7, 2.0, 1.0]),
        "presence": torch.tensor([0.5, 0.0, 1.0, 1.0]), "frequency": torch.tensor([0.1, -0.2, 0.0, 0.5])}


def by_hand(given: dict[str, Tensor]) -> Tensor:
    logits = given["logits"].clone()
    for entry, (row, table_row, length) in enumerate(zip(given["index"], given["rows"], given["length"], strict=True)):
        tokens = given["token_table"][table_row, :length].tolist()
        completion = tokens[int(given["num_prompt"][entry]):]
        for token in set(tokens):
            factor = given["repetition"][entry]
            value = logits[row, token] / factor if logits[row, token] > 0 else logits[row, token] * factor
            value -= given["presence"][entry] * (token in completion)
            logits[row, token] = value - given["frequency"][entry] * completion.count(token)
    return logits


@pytest.mark.parametrize(("vocab_size", "longest"), [(40, 60), (97, 3), (5000, 2500)])
@pytest.mark.parametrize("kernels", [penalties, sampling_reference], ids=["triton", "reference"])
def test_each_seen_token_is_penalised_once_by_its_count(device, kernels, vocab_size, longest):
    given = arguments(vocab_size, longest)
    expected = by_hand(given)
    where = device if kernels is penalties else "cpu"
    given = {name: value.to(where) for name, value in given.items()}
    kernels.penalise(**given)
    torch.testing.assert_close(given["logits"].cpu(), expected)
    assert not given["counts"].any()


def test_entries_that_penalise_nothing_leave_everything_as_it_is(device):
    given = {name: value.to(device) for name, value in arguments(40, 20).items()}
    given["length"].zero_()
    before = given["logits"].clone()
    penalties.penalise(**given)
    sampling_reference.penalise(**{name: value.cpu() for name, value in given.items()})
    assert torch.equal(given["logits"], before)


@pytest.mark.gpu
def test_long_histories_of_a_large_batch_are_penalised():
    table = torch.randint(0, 500, (256, 20_000), dtype=torch.int32)
    integers = torch.arange(256)
    small = torch.full((256,), 20_000, dtype=torch.int32)
    floats = torch.full((256,), 1.1)
    given = (torch.randn(256, 1000), table, torch.zeros(256, 1000, dtype=torch.int32), integers, integers.flip(0),
             small // 2, small, floats, floats, floats / 1000)
    on_device = [value.cuda() for value in given]
    sampling_reference.penalise(*given)
    penalties.penalise(*on_device)
    torch.testing.assert_close(on_device[0].cpu(), given[0])
    assert not on_device[2].any()
