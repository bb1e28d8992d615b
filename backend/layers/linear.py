"""Linear layers: y = x Wᵀ + b in two parallel shapes after Megatron-LM (Shoeybi et al., 2019).

Column: outputs are divided, so no communication. Row: inputs are divided, so partial results are summed. With one
rank both hold the whole weight. How it is stored is the weight format's matter. Used by attention and mlp."""

from __future__ import annotations

from torch import Tensor

from backend.distributed import TensorParallel
from backend.layers.parameter import Shard, ShardedModule
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import WeightFormat


class ColumnLinear(ShardedModule):
    """Divides the outputs: [T, in] → [T, out / tp].

    parts  the output axis as a row of parts (q | k | v, or gate | up), each divided over the ranks on its own
    Raises ConfigError where tp does not divide a part."""

    def __init__(self, in_features: int, parts: tuple[int, ...], bias: bool, tp: TensorParallel,
                 weight_format: WeightFormat) -> None:
        super().__init__()
        self.weight_format = weight_format
        out_features = sum(parts)
        for stored in weight_format.tensors(in_features, out_features):
            self.declare(stored.name, stored.divide_outputs(parts, tp), stored.dtype)
        self.bias = None
        if bias:
            self.declare("bias", Shard.parts((out_features,), 0, parts, tp))

    def prepare(self) -> None:
        self.weight_format.prepare(self)

    def forward(self, hidden: Tensor, norm: RMSNorm, is_gated: bool = False) -> Tensor:
        """The product of norm(hidden), [T, out / tp]; with is_gated, silu of its first half times the second."""
        return self.weight_format.apply(hidden, self, self.bias, norm=norm.operands, is_gated=is_gated)


class RowLinear(ShardedModule):
    """Divides the inputs, sums over the ranks and adds to the residual stream. The bias is whole, added once.

    Raises ConfigError where tp does not divide in_features."""

    def __init__(self, in_features: int, out_features: int, bias: bool, tp: TensorParallel,
                 weight_format: WeightFormat) -> None:
        super().__init__()
        self.tp = tp
        self.weight_format = weight_format
        for stored in weight_format.tensors(in_features, out_features):
            self.declare(stored.name, stored.divide_inputs(in_features, tp), stored.dtype)
        self.bias = None
        if bias:
            self.declare("bias", Shard.whole((out_features,)))

    def prepare(self) -> None:
        self.weight_format.prepare(self)

    def forward(self, inputs: Tensor, residual: Tensor) -> Tensor:
        """inputs [T, in / tp]; residual [T, out] is changed in place and returned."""
        if self.tp.size == 1:
            return self.weight_format.apply(inputs, self, self.bias, residual=residual)
        residual.add_(self.tp.all_reduce(self.weight_format.apply(inputs, self, None)))
        return residual if self.bias is None else residual.add_(self.bias)
