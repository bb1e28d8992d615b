"""RMSNorm (Zhang and Sennrich, 2019), alone or fused into the linear layer that follows it.

Used by models/decoder.py and linear.py, and, per head, by attention.py."""

from __future__ import annotations

from torch import Tensor

from backend.kernels import dispatch as kernels
from backend.layers.parameter import Shard, ShardedModule


class RMSNorm(ShardedModule):
    """Normalises the last axis, whose length is `size`; the same on every rank."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.declare("weight", Shard.whole((size,)))

    def forward(self, hidden: Tensor) -> Tensor:
        return kernels.rms_norm(hidden, self.weight, self.eps)

    @property
    def operands(self) -> tuple[Tensor, float]:
        """Weight and eps, for a kernel that normalises on the way."""
        return self.weight, self.eps
