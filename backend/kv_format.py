"""KV format: how keys and values lie in the cache, and which of the formats a model runs with.

Decided here alone, from quant_policy and whether the workspace brings calibrated scales. Used by memory_plan.py,
worker, and the kernels; imports no torch."""

from __future__ import annotations

from enum import Enum


class KvFormat(Enum):
    """The values are what the log says.

    Quantised, a value x is kept as an unsigned integer q of `num_bits`, and read as q * scale + zero. Online formats
    have a scale and a zero for each token and KV head, the calibrated one for each KV head."""

    AS_MODEL = "in the model's dtype"
    INT8 = "int8 (online)"
    INT4 = "int4 (online)"
    CALIBRATED_INT8 = "int8 (calibrated)"

    @property
    def num_bits(self) -> int:
        """Of a quantised value; 0: not quantised."""
        return {KvFormat.AS_MODEL: 0, KvFormat.INT4: 4}.get(self, 8)

    @property
    def is_online(self) -> bool:
        """Whether each token has its own scales."""
        return self in (KvFormat.INT8, KvFormat.INT4)

    def head_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """What the cache holds of one token for one KV head: key, value and, online, four float16 scales and zeros."""
        if self is KvFormat.AS_MODEL:
            return 2 * head_dim * dtype_bytes
        return 2 * head_dim * self.num_bits // 8 + 8 * self.is_online


QUANT_POLICIES = (0, 4, 8)


def kv_format(quant_policy: int, has_calibrated_scales: bool) -> KvFormat:
    """The format that one of QUANT_POLICIES means: with calibrated scales 4 is int8, as it was in 2023."""
    if quant_policy == 4 and has_calibrated_scales:
        return KvFormat.CALIBRATED_INT8
    return {0: KvFormat.AS_MODEL, 4: KvFormat.INT4, 8: KvFormat.INT8}[quant_policy]
