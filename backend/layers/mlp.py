"""Feed-forward network with SwiGLU (Shazeer, 2020): w2(silu(w1 x) * w3 x), w1 and w3 fused into w13.

Used by models/decoder.py."""

from __future__ import annotations

from torch import Tensor, nn

from backend.distributed import TensorParallel
from backend.layers.linear import ColumnLinear, RowLinear
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import WeightFormat


class FeedForward(nn.Module):
    """hidden += w2(silu(gate) * up) of norm(hidden). Raises ConfigError where tp does not divide intermediate_size."""

    def __init__(self, hidden_size: int, intermediate_size: int, tp: TensorParallel,
                 weight_format: WeightFormat) -> None:
        super().__init__()
        tp.split(intermediate_size, "intermediate_size")
        parts = (intermediate_size, intermediate_size)
        self.w13 = ColumnLinear(hidden_size, parts, bias=False, tp=tp, weight_format=weight_format)
        self.w2 = RowLinear(intermediate_size, hidden_size, bias=False, tp=tp, weight_format=weight_format)

    def forward(self, hidden: Tensor, norm: RMSNorm) -> Tensor:
        """hidden [T, hidden_size] is changed in place and returned."""
        return self.w2(self.w13(hidden, norm, is_gated=True), hidden)
