"""Tensor parallelism: this process's place among the ranks, and the two collectives that the layers need.

With size 1 both collectives return their argument, so one code path serves both. Used by worker (makes it) and
layers (calls it)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from backend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """rank in 0..size-1; group None means a single process."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate over ranks along the last axis: [..., X] → [..., size * X]."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def split(self, count: int, what: str) -> int:
        """count / size. Raises ConfigError that names the tp values that would divide it."""
        if count % self.size:
            divisors = [n for n in range(1, count + 1) if count % n == 0 and n <= 64]
            raise ConfigError(f"tp={self.size} does not divide {what}={count}; use tp in {divisors}")
        return count // self.size
