from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.distributed import TensorParallel
from backend.errors import ConfigError
from backend.layers.linear import ColumnLinear, RowLinear
from backend.layers.parameter import Shard
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import DENSE


def read(shard: Shard, values: Tensor) -> Tensor:
    """What a rank holds of a tensor with these values."""
    local = torch.zeros(shard.local_shape)
    for index, place in shard.places(local):
        place.copy_(values[index])
    return local


def test_each_part_of_a_fused_weight_is_divided_on_its_own() -> None:
    stored = torch.tensor([*range(8), *range(10, 14), *range(20, 24)]).float()[:, None]
    shard = Shard.parts((16, 1), 0, (8, 4, 4), TensorParallel(rank=1, size=2))
    assert read(shard, stored).flatten().tolist() == [4, 5, 6, 7, 12, 13, 22, 23]


def test_a_rank_has_places_for_its_part_and_no_more() -> None:
    stored = torch.randn(6, 12)
    shard = Shard.parts((6, 12), 1, (12,), TensorParallel(rank=2, size=3))
    assert torch.equal(read(shard, stored), stored[:, 8:])
    assert [stored[index].shape for index, _ in shard.places(torch.zeros(6, 4))] == [(6, 4)]


def test_an_indivisible_vocabulary_is_padded_with_zeros() -> None:
    values = torch.arange(1, 6).float()[:, None]
    ranks = [read(Shard.padded((5, 1), TensorParallel(rank, 4)), values).flatten().tolist() for rank in range(4)]
    assert ranks == [[1, 2], [3, 4], [5, 0], [0, 0]]


def test_an_indivisible_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="tp=2 does not divide"):
        Shard.parts((5, 1), 0, (5,), TensorParallel(0, 2))


def test_column_and_row_layers_over_two_ranks_add_the_whole_product_to_the_residual() -> None:
    torch.manual_seed(0)
    w1, w2, inputs, residual = torch.randn(12, 5), torch.randn(4, 12), torch.randn(3, 5), torch.randn(3, 4)
    norm = RMSNorm(5, 1e-5)
    norm.set_parameter("weight", torch.rand(5))
    total = residual.clone()
    for rank in range(2):
        column = ColumnLinear(5, (12,), False, TensorParallel(rank, 2), DENSE)
        row = RowLinear(12, 4, False, TensorParallel(rank, 2), DENSE)
        column.set_parameter("weight", read(column.shards["weight"], w1))
        row.set_parameter("weight", read(row.shards["weight"], w2))
        row.tp = TensorParallel()  # the sum over the ranks is this loop's
        assert row(column(inputs, norm), total) is total
    torch.testing.assert_close(total, residual + norm(inputs) @ w1.T @ w2.T)
