"""Demand: the bytes that some work has to read and the operations it has to do on a model; no engine can do with less.

Divided by what the card can do they are the floors that every figure stands beside. Used by workloads.py,
step_table.py and kernels.py; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from backend.config import ModelConfig
from backend.kv_format import kv_format
from backend.memory_plan import DTYPE_BYTES, num_linear_weights, weights_bytes

Work = list[tuple[int, int]]  # (prompt tokens, new tokens) of each request


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of a card.

    quant_policy  0: KV in the model's dtype; 4, 8: in so many bits, with the scales of each token and KV head"""

    model: ModelConfig
    quant_policy: int = 0

    def step_bytes(self) -> int:
        """Weights that a decode step reads: all but the embedding's other rows."""
        embedding = self.model.vocab_size * self.model.hidden_size * DTYPE_BYTES[self.model.dtype]
        return weights_bytes(self.model, self.model.dtype, 1) - embedding

    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        model, kv = self.model, kv_format(self.quant_policy, has_calibrated_scales=False)
        return model.num_layers * model.num_kv_heads * kv.head_bytes(model.head_dim, DTYPE_BYTES[model.dtype])

    def step_flops(self, batch_size: int) -> float:
        """Of the matmuls of a decode step."""
        return 2 * (num_linear_weights(self.model) + self.model.vocab_size * self.model.hidden_size) * batch_size

    def decode_kv_bytes(self, work: Work) -> float:
        """KV that decoding reads: a new token attends to the prompt and, on average, half of the completion."""
        return sum(num_new * (num_prompt + num_new / 2) for num_prompt, num_new in work) * self.kv_token_bytes()

    def flops(self, work: Work) -> float:
        """Of all matmuls and the causal attention. The output head runs only where a token is sampled."""
        model = self.model
        head = model.vocab_size * model.hidden_size
        per_token = 2 * num_linear_weights(model)
        attention = 4 * model.num_layers * model.num_heads * model.head_dim
        total = 0.0
        for num_prompt, num_new in work:
            num_computed = num_prompt + num_new - 1  # the last new token is not fed back
            total += per_token * num_computed + 2 * head * num_new + attention * num_computed * (num_computed + 1) / 2
        return total
